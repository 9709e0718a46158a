"""How sure a number is: standard errors and 95% intervals of means, rates and paired differences, and Pareto's k."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10, nan, sqrt

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


def k_threshold(samples: int) -> float:
    """The largest Pareto k at which the mean of S weights is trusted, min(1 - 1/log10 S, 0.7).

    Vehtari et al. 2024, section 3.2; no k is where there is but one sample.
    """
    return min(1 - 1 / log10(samples), 0.7) if samples > 1 else -inf


def is_unreliable(metrics: Mapping[str, float], key: str) -> bool:
    """Whether most images of the mean ``key`` of log p(x), among a run's ``metrics``, have too high a Pareto k.

    The share of those that have is ``SPLIT/unreliable``, and of another estimate than log p(x) ``KEY_unreliable``.
    """
    split, _, name = key.partition("/")
    share = {"log_px": "unreliable", "log_px_table": "unreliable_table"}.get(name, f"{name}_unreliable")
    return metrics.get(f"{split}/{share}", 0.0) > 0.5


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean over images; NaN where there are too few."""
    array = np.array(list(values))
    mean = float(array.mean()) if len(array) else nan
    return mean, float(array.std(ddof=1) / sqrt(len(array))) if len(array) > 1 else nan


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean of ``values`` (n > 1) and half the width of its 95% interval, Student's t with n - 1 degrees of freedom."""
    mean, error = mean_se(values)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * error


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of ``values`` (n,): 2.5% to 97.5% of the means of 10,000 resamples.

    They are the same resamples at every call (percentile bootstrap, Efron & Tibshirani 1993, chapter 13).
    """
    random = np.random.default_rng(0)
    size = (RESAMPLES_AT_ONCE, len(values))
    draws = (random.integers(len(values), size=size, dtype=np.int32) for _ in range(RESAMPLES // RESAMPLES_AT_ONCE))
    low, high = np.quantile(np.concatenate([values[draw].mean(1) for draw in draws]), (0.025, 0.975))
    return float(low), float(high)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
    """Compare two estimates on the images that both have, by index; None where these are fewer than two.

    The interval is ``bootstrap``'s over these images.
    """
    gaps = np.array([values[index] - others[index] for index in sorted(values.keys() & others.keys())])
    if len(gaps) < 2:
        return None
    above, below = float((gaps > 0).mean()), float((gaps < 0).mean())
    return Paired(len(gaps), float(gaps.mean()), *bootstrap(gaps), above, below)
