"""The mean over a whole split from some of its images, by regression on what is known of all; needs no torch."""

from collections.abc import Iterable
from math import nan, sqrt

import numpy as np
import pandas as pd


def split_mean(values: pd.Series, known: pd.DataFrame, noise: float = 0.0) -> tuple[float, float]:
    """The mean of ``values`` over all images of a split, and its standard error, from the images that have a value.

    ``values`` are by image index; ``known`` has a row for each of the N images of the split, by index too, with one or
    more quantities that go along with the values. With n values the mean is that of the values plus the slopes times
    (mean of ``known`` over the split - over these images): the regression estimator, unbiased to the order of 1/n, with
    the variance (1 - n/N) s^2 / n of residuals of variance s^2 (Cochran 1977, sections 7.3 to 7.4). ``noise`` is the
    variance of each value about what it estimates, which also a whole split leaves.

    Without enough images for slopes it is their plain mean; the error of one image is NaN.
    """
    own = known.loc[values.index]
    y, x = values.to_numpy(float), own.to_numpy(float)
    n, whole = len(y), len(known)
    mean, centre = float(y.mean()), x.mean(axis=0)
    slopes, degrees = np.zeros(x.shape[1]), n - 1
    if n > x.shape[1] + 1 and np.isfinite(x).all() and np.isfinite(known.to_numpy(float)).all():
        slopes = np.linalg.lstsq(x - centre, y - mean, rcond=None)[0]
        degrees -= x.shape[1]
        mean += float(slopes @ (known.to_numpy(float).mean(axis=0) - centre))
    if degrees < 1:
        return float(mean), nan
    residuals = y - y.mean() - (x - centre) @ slopes
    spread = float(residuals @ residuals) / degrees
    return float(mean), sqrt((max(spread - noise, 0.0) * (1 - n / whole) + noise) / n)


def class_means(
    values: pd.Series, known: pd.Series, labels: pd.Series, noise: float = 0.0
) -> dict[int, tuple[float, float]]:
    """``split_mean`` of each class, (mean, standard error) by label, with one slope for all of them.

    ``known`` and ``labels`` are of all images of the split, by index.
    """
    own = labels.loc[values.index]
    y, x = (part - part.groupby(own).transform("mean") for part in (values, known.loc[values.index]))
    degrees = len(y) - own.nunique() - 1
    squares = float((x**2).sum())
    slope = float((x * y).sum()) / squares if squares > 0 and degrees > 0 else 0.0
    spread = float(((y - slope * x) ** 2).sum()) / degrees if degrees > 0 else nan
    found = {}
    for label, part in values.groupby(own):
        everyone = known[labels == label]
        mean = part.mean() + slope * (everyone.mean() - known.loc[part.index].mean())
        left = max(spread - noise, 0.0) * (1 - len(part) / len(everyone)) + noise
        found[int(label)] = float(mean), sqrt(left / len(part))  # pyright: ignore[reportArgumentType]
    return found


def noise_of(std_errs: Iterable[float]) -> float:
    """The mean variance of estimates of these standard errors; 0 where one is not known."""
    square = float(np.mean(np.square(list(std_errs))))
    return square if np.isfinite(square) else 0.0
