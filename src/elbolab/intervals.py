"""How sure a number is: standard errors and 95% intervals of means, rates and paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy.special import stdtrit

RESAMPLES, RESAMPLES_AT_ONCE = 10_000, 100


@dataclass(frozen=True)
class Paired:
    """A mean difference over `images` images with its 95% interval; `above` and `below` are shares of the images."""

    images: int
    mean: float
    low: float
    high: float
    above: float
    below: float


def binomial_se(rate: float, n: int) -> float:
    """Standard error of a rate over n independent images."""
    return sqrt(max(rate * (1 - rate), 0.0) / n) if n else nan


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean over images; NaN where there are too few."""
    array = np.array(list(values))
    mean = float(array.mean()) if len(array) else nan
    return mean, float(array.std(ddof=1) / sqrt(len(array))) if len(array) > 1 else nan


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean of ``values`` (n > 1) and half the width of its 95% interval, Student's t with n - 1 degrees of freedom."""
    mean, error = mean_se(values)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * error


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
    """Compare two estimates on the images that both have, by index; None where these are fewer than two.

    The interval is the percentile bootstrap's over images (Efron 1979), from the same resamples at every call.
    """
    gaps = np.array([values[index] - others[index] for index in sorted(values.keys() & others.keys())])
    if len(gaps) < 2:
        return None
    random = np.random.default_rng(0)
    size = (RESAMPLES_AT_ONCE, len(gaps))
    draws = (random.integers(len(gaps), size=size, dtype=np.int32) for _ in range(RESAMPLES // RESAMPLES_AT_ONCE))
    means = [gaps[draw].mean(1) for draw in draws]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    above, below = float((gaps > 0).mean()), float((gaps < 0).mean())
    return Paired(len(gaps), float(gaps.mean()), float(low), float(high), above, below)
