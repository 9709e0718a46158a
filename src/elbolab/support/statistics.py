"""How sure a number is: standard errors and 95% intervals of means, rates and paired differences, and Pareto's k."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10, nan, sqrt
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Paired:
    """A mean difference over `images` images with its 95% interval; `above` and `below` are shares of the images."""

    images: int
    mean: float
    low: float
    high: float
    above: float
    below: float


def k_threshold(samples: int) -> float:
    """The largest Pareto k at which the mean of S weights is trusted, min(1 - 1/log10 S, 0.7).

    Vehtari et al. 2024, section 3.2; no k is where there is but one sample.
    """
    return min(1 - 1 / log10(samples), 0.7) if samples > 1 else -inf


def is_heavy_tailed(k: Any, samples: int) -> Any:
    """Whether the Pareto k of an image's S weights is above ``k_threshold``: a bool, or one for each of an array."""
    return k > k_threshold(samples)


def is_unreliable(share: float) -> bool:
    """Whether a mean over images is not to be trusted, by the share of them whose weights are heavy-tailed: most."""
    return share > 0.5


def accuracy(confusion: Sequence[Sequence[int]]) -> tuple[float, float, int]:
    """The share of a table of counts (C, C) that is on its diagonal, its standard error, and the images counted."""
    counts = np.asarray(confusion)
    n = int(counts.sum())
    rate = float(np.trace(counts) / n) if n else nan
    return rate, sqrt(rate * (1 - rate) / n) if n else nan, n


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean over images; NaN where there are too few."""
    array = np.array(list(values))
    mean = float(array.mean()) if len(array) else nan
    return mean, float(array.std(ddof=1) / sqrt(len(array))) if len(array) > 1 else nan


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean of ``values`` (n > 1) and half the width of its 95% interval, Student's t with n - 1 degrees of freedom."""
    mean, error = mean_se(values)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * error


def auroc(own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The probability that one of the scores ``other`` (m,) is below one of ``own`` (n,), and its standard error.

    Ties count half: the area under the receiver operating characteristic. With the share of ``other`` below each of
    ``own``, of variance s^2, and the share of ``own`` above each of ``other``, of variance t^2, the error is
    sqrt(s^2 / n + t^2 / m) (DeLong et al. 1988): 0 where the two do not overlap, NaN where either has one score only.
    """
    # The package takes half a second to import.
    from scipy.stats import rankdata

    n, m = len(own), len(other)
    ranks = rankdata(np.concatenate([own, other]))
    below = (ranks[:n] - rankdata(own)) / m
    above = 1 - (ranks[n:] - rankdata(other)) / n
    if min(n, m) < 2:
        return float(below.mean()), nan
    return float(below.mean()), sqrt(below.var(ddof=1) / n + above.var(ddof=1) / m)


def wilson(count: int, images: int) -> tuple[float, float]:
    """The 95% score interval of a share, ``count`` of so many images (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(count, images).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of ``values`` (n,): 2.5% to 97.5% of the means of 10,000 resamples; of one, itself.

    They are the same resamples at every call (percentile bootstrap, Efron & Tibshirani 1993, chapter 13).
    """
    # The package takes half a second to import.
    from scipy.stats import bootstrap as resample

    if len(values) == 1:
        return float(values[0]), float(values[0])
    found = resample((values,), np.mean, n_resamples=10_000, batch=100, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
    """Compare two estimates on the images that both have, by index; None where these are fewer than two.

    The interval is ``bootstrap``'s over these images, in the unit of the values.
    """
    gaps = np.array([values[index] - others[index] for index in sorted(values.keys() & others.keys())])
    if len(gaps) < 2:
        return None
    above, below = float((gaps > 0).mean()), float((gaps < 0).mean())
    return Paired(len(gaps), float(gaps.mean()), *bootstrap(gaps), above, below)
