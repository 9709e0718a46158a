"""The one exception that stands for a user's mistake, and what no message may show."""

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)|(?<=[?&]password=)[^&\s'\"]+")


def redacted(text: str) -> str:
    """``text`` with three stars in place of the user and the password of every address in it."""
    return _CREDENTIALS.sub("***", text)


class UserError(ValueError):
    """A mistake of the user, told in one line: what, the value, the bound, the remedy. The command exits with 2.

    The message is kept without passwords, since it goes to screens, logs and tags.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))
