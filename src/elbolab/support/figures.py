"""Drawing figures beside other work: in matplotlib's own style, and without failing that work."""

import sys
from collections.abc import Callable
from typing import TypeVar

from elbolab.support.errors import redacted

T = TypeVar("T")


def draw(what: str, paint: Callable[[], T]) -> T | None:
    """What ``paint`` gives, None and a line on standard error where it fails.

    The user's own style is not taken: it may ask for LaTeX, or for fonts that are not there.
    """
    try:
        # Imported here, since its import takes half a second, and fails over a broken matplotlibrc.
        from matplotlib import style

        with style.context("default"):
            return paint()
    except Exception as error:
        why = " ".join(redacted(f"{type(error).__name__}: {error}").split())
        print(f"elbolab: {what} could not be drawn: {why:.300}", file=sys.stderr, flush=True)
        return None
