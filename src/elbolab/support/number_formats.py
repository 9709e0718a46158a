"""The one way to write a number, its error, and that it is not to be trusted."""

from math import isfinite, isnan, nan

DASH = "\u2013"
MINUS = "\u2212"
DAGGER = "\u2020"
UNRELIABLE = (
    f"{DAGGER} Unreliable: the Pareto k of the importance weights (for one image its own, for a mean that of more than "
    "half of its images) is above min(1 - 1/log10 S, 0.7) for S samples. In many dimensions plain sampling from q then "
    "has a large downward bias, which the standard error, taken from the same samples, does not show."
)

BRIEFLY = f"{DAGGER} unreliable by its Pareto k: a lower bound"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; a dash where there is none."""
    return DASH if value is None or isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def measured(value: float | None, error: float | None, digits: int = 2) -> str:
    """Write a number with its standard error, alone where that is unknown or nothing."""
    text = number(value, digits)
    return text if text == DASH or not error or not isfinite(error) else f"{text} ± {error:.{digits}f}"


def dagger(text: str, unreliable: bool | None) -> str:
    """Mark a number that is unreliable."""
    return f"{text}{DAGGER}" if unreliable and text != DASH else text


def between(low: float, high: float) -> str:
    """Write an interval by its ends."""
    return f"{number(low)} to {number(high)}"


def percent(rate: float | None, error: float | None = None) -> str:
    """Write a rate with its standard error in percent."""
    text = measured(100 * (nan if rate is None else rate), 100 * (nan if error is None else error), 1)
    return text if text == DASH else f"{text} %"


def rate_between(rate: float, low: float, high: float) -> str:
    """Write a rate with its interval in percent, alone where that is unknown."""
    return percent(rate) if isnan(low + high) else f"{percent(rate)} ({100 * low:.1f} to {100 * high:.1f})"
