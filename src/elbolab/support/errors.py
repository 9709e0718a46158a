"""The one exception that stands for a user's mistake, how it shows the value that was wrong, and what none may show."""

import re
from pathlib import Path
from typing import Any

LONGEST = 200
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)|(?<=[?&]password=)[^&\s'\"]+")


class UserError(ValueError):
    """A mistake of the user, told in one line: what, the value, the bound, the remedy. The command exits with 2.

    The message is kept without passwords, since it goes to screens, logs and tags.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


def redacted(text: str) -> str:
    """``text`` with three stars in place of the user and the password of every address in it."""
    return _CREDENTIALS.sub("***", text)


def reason(error: Exception) -> str:
    """What went wrong, in one line without passwords."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    # A mistake of the user ends with the remedy.
    return line if isinstance(error, UserError) else redacted(line)[:300]


def shown(value: Any) -> str:
    """A value as Python writes it, in one line of at most ``LONGEST`` characters."""
    try:
        text = " ".join(repr(str(value) if isinstance(value, Path) else value).splitlines())
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
