"""The one exception that stands for a user's mistake, and how it shows the value that was wrong."""

from typing import Any

LONGEST = 200


class UserError(ValueError):
    """A mistake of the user, told in one line: what, the value, the bound, the remedy. The command exits with 2."""


def shown(value: Any) -> str:
    """A value as Python writes it, in one line of at most ``LONGEST`` characters."""
    try:
        text = " ".join(repr(value).splitlines())
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
