"""How far two models are apart on the same images, with the interval of it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf, sqrt

import pandas as pd
from scipy.special import stdtrit

from elbolab.evaluation import metrics as m
from elbolab.evaluation.split_means import split_mean
from elbolab.report.collect import Entry, Row
from elbolab.report.select import FITTED
from elbolab.support.statistics import Paired, mean_se, paired


def both_converged(one: Entry, other: Entry) -> bool | None:
    """Whether two entries have converged, so that one may be ranked above the other; None where it is not known."""
    known = {one.converged, other.converged}
    return False if False in known else None if None in known else True


def apart(entry: Entry, other: Entry, split: str) -> Row:
    """By how much log p(x) under an entry is above that under another on the same images; empty where they share none.

    The 95% interval is over images, and where both models have several seeds over these too (then ``seeds`` is the
    smaller number, else 0): the variances of the mean over images and over the seeds of each are added, with the
    degrees of freedom of Welch 1947.
    """
    compared = _compare((entry, other), split, entry.means(split), other.means(split), noisy=True)
    if compared is None:
        return {}
    found, error, degrees = compared
    # A closed form has no seed.
    seeded = [one for one in (entry, other) if not one.closed_form]
    seeds = min((len(one.runs) for one in seeded), default=1)
    if seeds > 1:
        parts = [(error**2, degrees)]
        for one in seeded:
            values = [run.metrics[m.LOG_PX.at(split)] for run in one.runs]
            parts.append((mean_se(values)[1] ** 2, len(values) - 1))
        total = sum(variance for variance, _ in parts)
        freedom = total**2 / sum(variance**2 / own for variance, own in parts) if total else degrees
        half = float(stdtrit(freedom, 0.975)) * sqrt(total)
        found = replace(found, low=found.mean - half, high=found.mean + half)
    return asdict(found) | {"seeds": seeds if seeds > 1 else 0}


def fitted_apart(encoder: Entry, fitted: Entry) -> Paired | None:
    """By how much a decoder's ELBO under posteriors fitted to test images is above that of a model without encoder."""
    ours, theirs = encoder.means(m.TEST, "elbo", FITTED), fitted.means(m.TEST, "elbo")
    compared = _compare((encoder, fitted), m.TEST, ours, theirs)
    return compared and compared[0]


def _compare(
    entries: Sequence[Entry], split: str, ours: dict[int, float], theirs: dict[int, float], noisy: bool = False
) -> tuple[Paired, float, int] | None:
    """Compare two values of the same images, ``noisy`` ones as estimates of log p(x) are.

    The mean, also given with its error and the degrees of freedom of that, is over the split where every image of it
    is known. None where fewer than two images have both.
    """
    found = paired(ours, theirs)
    known = [one.population(split) for one in entries]
    if found is None:
        return None
    if any(one.empty for one in known):
        return found, (found.high - found.low) / (2 * float(stdtrit(inf, 0.975))), found.images - 1
    both = pd.concat(known, axis=1, keys=("entry", "other")).dropna()
    noise = sum(one.noise(split) for one in entries if noisy)
    mean, error = split_mean((pd.Series(ours) - pd.Series(theirs)).dropna(), both, noise)
    degrees = max(1, found.images - 3)
    half = float(stdtrit(degrees, 0.975)) * error
    return replace(found, mean=mean, low=mean - half, high=mean + half), error, degrees
