"""The sentences of a report, each computed from the numbers; None where its numbers are not there."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, isnan

import numpy as np

from elbolab.evaluation.metrics import CLASS_PRESERVATION, IW_BOUND, LOG_PX, TEST, TRAIN, VAL
from elbolab.report.collect import TABLE, Comparison, Entry
from elbolab.support.number_formats import between, dagger, measured, number, rate_between
from elbolab.support.statistics import Paired, paired


@dataclass(frozen=True)
class Sentence:
    """One sentence computed from the numbers, with the ids of the runs that they came from."""

    text: str
    runs: tuple[str, ...]


def apart_on_same(subject: str, gap: Paired, other: str, doubtful: bool) -> str:
    """Write that a subject is some nats above or below another on the same images, with the 95% interval."""
    interval = f"(95% interval {between(gap.low, gap.high)})"
    nats = dagger(number(abs(gap.mean), error=(gap.high - gap.low) / 2), doubtful)
    return f"{subject} {nats} nats {'above' if gap.mean > 0 else 'below'} {other} {interval}"


def fitted(encoder: Entry, other: Entry, gap: Paired | None) -> Sentence | None:
    """Say what an encoder's decoder is worth under posteriors fitted to each image, beside a model without encoder."""
    if gap is None:
        return None
    subject = f"With posteriors fitted to the same {gap.images} test images the ELBO of {encoder.label} is"
    text = apart_on_same(subject, gap, f"that of {other.label}", False)
    return Sentence(f"{text}.", (encoder.run.id, other.run.id))


def protocol(entries: Sequence[Entry]) -> Sentence | None:
    """Warn when runs were not evaluated alike."""
    names = ("method", "tolerance", "samples", "images", "seed", "cnn_run")
    runs = [run for entry in entries for run in entry.runs]
    kept = {name: {run.tags.get(f"evaluation.{name}", "none")[:8] for run in runs} for name in names}
    unlike = [f"{name} {' and '.join(sorted(values))}" for name, values in kept.items() if len(values) > 1]
    text = f"These runs were evaluated differently: {'; '.join(unlike)}."
    return Sentence(text, tuple(run.id for run in runs)) if unlike else None


def train_test(entry: Entry) -> Sentence | None:
    """Say how much higher a run's log p(x) is on training images than on test images."""
    (train, train_se), (test, test_se) = (entry.measures(LOG_PX, split).values() for split in (TRAIN, TEST))
    gap, error = train - test, hypot(train_se, test_se)
    doubtful = entry.unreliable(TRAIN) or entry.unreliable(TEST)
    nats, side = dagger(measured(abs(gap), error), doubtful), "above" if gap > 0 else "below"
    unclear = "" if abs(gap) > 2 * error else ", within two standard errors"
    text = f"{entry.label}: training images lie on average {nats} nats {side} test images{unclear}."
    return None if isnan(gap + error) else Sentence(text, (entry.run.id,))


def table(entry: Entry) -> Sentence | None:
    """Say how the training table's own rows compare with rows fitted to the same images by the protocol."""
    gap = paired(entry.images(TRAIN, "elbo", TABLE), entry.images(TRAIN, "elbo"))
    if gap is None:
        return None
    subject = f"{entry.label}: on the same {gap.images} training images the ELBO of the training table's own rows is"
    text = apart_on_same(subject, gap, "that of rows fitted by the protocol", False)
    return Sentence(f"{text}.", (entry.run.id,))


def extremes(comparison: Comparison, entry: Entry) -> Sentence | None:
    """Name the classes with the highest and the lowest mean log p(x) on test images."""
    digits = comparison.tables["digits"]
    means = {row[LOG_PX.name]: row for row in digits if (row["model"], row["split"]) == (entry.label, TEST)}
    if len(means) < 2:
        return None
    high, low = means[max(means)], means[min(means)]
    highest, lowest = (
        dagger(number(mean, error=row[LOG_PX.error_names[0]]), row.get("unreliable"))
        for mean, row in ((max(means), high), (min(means), low))
    )
    best, worst = (comparison.class_name(row["digit"]) for row in (high, low))
    text = f"highest mean for class {best} ({highest} nats), lowest for class {worst} ({lowest})"
    return Sentence(f"{entry.label}: {text}.", (entry.run.id,))


def class_kept(entry: Entry) -> Sentence | None:
    """Say how often the classifier gives a test image and its reconstruction the same class."""
    n = entry.agreement(TEST)[2]
    rate = rate_between(*entry.measures(CLASS_PRESERVATION, TEST).values())
    text = f"{entry.label}: {rate} of {n} test reconstructions keep the class that the classifier gives the original."
    return Sentence(text, (entry.run.id, entry.classes["cnn_run"])) if n else None


def confusion(entry: Entry) -> Sentence | None:
    """Name the classifier's most frequent mistake on test images."""
    if not (found := entry.classes.get("splits", {}).get(TEST)):
        return None
    counts = np.array(found["confusion"])
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    # Of mistakes that are equally frequent none is the most frequent.
    is_one = counts.any() and int((counts == counts.max()).sum()) == 1
    often = f", most often {row} as {column} ({counts.max()} of them)" if is_one else ""
    return Sentence(f"{entry.label} misreads {counts.sum()} of {found['n']} test images{often}.", (entry.run.id,))


def best(comparison: Comparison, entry: Entry) -> Sentence | None:
    """Say at which epoch the validation score was best and where it ended."""
    score, best, last = comparison.score(entry), comparison.best_epoch(entry), comparison.last_epoch(entry)
    if entry.closed_form or len(score) < 2 or best not in score:
        return None
    what = "bound" if (entry.run.id, IW_BOUND.at(VAL)) in comparison.curves else "ELBO"
    end = "" if best == last else f"; {number(score[last])} at the last"
    text = f"{entry.label}: validation {what} is highest at epoch {best} of {last} ({number(score[best])} nats{end})."
    return Sentence(text, (entry.run.id,))
