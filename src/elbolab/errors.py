"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake of the user, told in one line: what, the value, the bound, the remedy. The command exits with 2."""
