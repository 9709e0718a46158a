"""The one way to write a number, its error, and that it is not to be trusted."""

from math import floor, isfinite, isnan, log10, nan

DASH = "\u2013"
MINUS = "\u2212"
DAGGER = "\u2020"
UNRELIABLE = (
    f"{DAGGER} Unreliable: the error of the estimate (for one image its own, for a mean that of more than half of its "
    "images) misses the tolerance, or its weights have too large a variance for an error to mean something: it may be "
    "much too low. A larger --budget of elbolab evaluate helps; an evaluation with --method importance, or of an "
    "earlier version, is better done again with --method auto."
)

BRIEFLY = f"{DAGGER} unreliable: may be much too low"


def decimals(error: float | None, most: int = 2) -> int:
    """As many decimals as two significant digits of an error have, at most ``most``; these without a known error."""
    if not error or not isfinite(error):
        return most
    # Rounded first: 0.0996 is 0.10.
    return min(most, max(0, 1 - floor(log10(float(f"{abs(error):.1e}")))))


def number(value: float | None, digits: int = 2, error: float | None = None) -> str:
    """Write a number with a true minus sign; a dash where there is none.

    It has at most ``digits`` decimals, and fewer where its ``error``, or half the width of its interval, is large.
    """
    return DASH if value is None or isnan(value) else f"{value:z.{decimals(error, digits)}f}".replace("-", MINUS)


def measured(value: float | None, error: float | None, digits: int = 2) -> str:
    """Write a number with its standard error, alone where that is unknown or nothing."""
    text = number(value, digits, error)
    return text if text == DASH or not error or not isfinite(error) else f"{text} ± {number(error, digits, error)}"


def dagger(text: str, unreliable: bool | None) -> str:
    """Mark a number that is unreliable."""
    return f"{text}{DAGGER}" if unreliable and text != DASH else text


def between(low: float, high: float, digits: int = 2) -> str:
    """Write an interval by its ends."""
    half = (high - low) / 2
    return f"{number(low, digits, half)} to {number(high, digits, half)}"


def percent(rate: float | None, error: float | None = None) -> str:
    """Write a rate with its standard error in percent."""
    text = measured(100 * (nan if rate is None else rate), 100 * (nan if error is None else error), 1)
    return text if text == DASH else f"{text} %"


def rate_between(rate: float, low: float, high: float) -> str:
    """Write a rate with its interval in percent, alone where that is unknown."""
    if isnan(low + high):
        return percent(rate)
    return f"{number(100 * rate, 1, 50 * (high - low))} % ({between(100 * low, 100 * high, 1)})"
