"""The sentences of a report, each computed from the numbers and there only where its numbers are."""

from collections.abc import Sequence
from math import hypot, isnan

import numpy as np

from elbolab.report.collect import SPLITS, Curves, Entry, Row, Sentence
from elbolab.support.number_formats import between, dagger, kept, number, percent
from elbolab.support.statistics import Paired, is_unreliable, paired


def find(entries: Sequence[Entry], tables: dict[str, list[Row]], curves: Curves) -> dict[str, list[Sentence]]:
    """Return the report's sentences by topic."""
    latent = [entry for entry in entries if entry.latent]
    found = {
        "summary": [protocol_finding([entry for entry in latent if entry.evaluated])],
        "pairs": [pair_finding(row, latent) for row in tables["pairs"] if row["other"] == latent[0].label],
        "classifier": [confusion_finding(entry) for entry in entries if not entry.latent],
        "curves": [best_finding(entry, curves.get((entry.run.id, "val/elbo"), {})) for entry in latent],
        "classes": [finding for entry in latent for finding in (kept_finding(entry), *ten_findings(entry))],
        "digits": [extremes_finding(entry, tables["digits"]) for entry in latent],
        "means": [finding for entry in latent for finding in (train_test_finding(entry), table_finding(entry))],
    }
    return {topic: [finding for finding in group if finding] for topic, group in found.items()}


def apart(subject: str, gap: float, error: float, other: str, doubtful: bool) -> str:
    """Write that a subject is some nats above or below another, and whether that is within two standard errors."""
    unclear = "" if abs(gap) > 2 * error else ", within two standard errors"
    nats = dagger(f"{abs(gap):.2f} ± {error:.2f}", doubtful)
    return f"{subject} {nats} nats {'above' if gap > 0 else 'below'} {other}{unclear}."


def apart_on_same(subject: str, gap: Paired, other: str, doubtful: bool) -> str:
    """Write the same of a mean difference image by image, with its 95% interval."""
    interval, nats = f"(95% interval {between(gap.low, gap.high)})", dagger(f"{abs(gap.mean):.2f}", doubtful)
    return f"{subject} {nats} nats {'above' if gap.mean > 0 else 'below'} {other} {interval}"


def pair_finding(row: Row, entries: Sequence[Entry]) -> Sentence:
    """Say how far apart two runs are on the images that both were evaluated on, and which explains more of them."""
    gap = Paired(**{name: row[name] for name in Paired.__dataclass_fields__})
    images = f"{gap.images} {SPLITS[row['split']]} images"
    doubtful = any(one.unreliable(row["split"]) for one in entries if one.label in (row["model"], row["other"]))
    text = apart_on_same(f"On the same {images} {row['model']} is", gap, row["other"], doubtful)
    text += f" and explains {percent(gap.above)} of them better."
    return Sentence(text, (row["run"], row["other_run"]))


def protocol_finding(entries: Sequence[Entry]) -> Sentence | None:
    """Warn when runs were not evaluated alike."""
    names = ("samples", "images", "seed", "cnn_run")
    runs = [run for entry in entries for run in entry.runs]
    kept = {name: {run.tags.get(f"evaluation.{name}", "none")[:8] for run in runs} for name in names}
    unlike = [f"{name} {' and '.join(sorted(values))}" for name, values in kept.items() if len(values) > 1]
    text = f"These runs were evaluated differently: {'; '.join(unlike)}."
    return Sentence(text, tuple(run.id for run in runs)) if unlike else None


def train_test_finding(entry: Entry) -> Sentence | None:
    """Say how much higher a run's log p(x) is on training images than on test images."""
    gap = entry.metric("train/log_px") - entry.metric("test/log_px")
    error = hypot(entry.metric("train/log_px_se"), entry.metric("test/log_px_se"))
    doubtful = entry.unreliable("train") or entry.unreliable("test")
    text = apart(f"{entry.label}: training images lie on average", gap, error, "test images", doubtful)
    return None if isnan(gap + error) else Sentence(text, (entry.run.id,))


def table_finding(entry: Entry) -> Sentence | None:
    """Say how the training table's own rows compare with rows fitted to the same images by the protocol."""
    gap = paired(entry.images("train", table=True), entry.images("train"))
    if gap is None:
        return None
    subject = f"{entry.label}: on the same {gap.images} training images log p(x) from the training table's own rows is"
    doubtful = entry.unreliable("train") or is_unreliable(entry.run.metrics, "train/log_px_table")
    text = apart_on_same(subject, gap, "that from rows fitted by the protocol", doubtful)
    return Sentence(f"{text}.", (entry.run.id,))


def extremes_finding(entry: Entry, digits: Sequence[Row]) -> Sentence | None:
    """Name the classes with the highest and the lowest mean log p(x) on test images."""
    means = {row["log_px"]: row for row in digits if (row["model"], row["split"]) == (entry.label, "test")}
    if len(means) < 2:
        return None
    high, low = means[max(means)], means[min(means)]
    highest, lowest = (dagger(number(row["log_px"]), row.get("unreliable")) for row in (high, low))
    text = f"highest mean for class {high['digit']} ({highest} nats), lowest for class {low['digit']} ({lowest})"
    return Sentence(f"{entry.label}: {text}.", (entry.run.id,))


def kept_finding(entry: Entry) -> Sentence | None:
    """Say how often the classifier gives a test image and its reconstruction the same class."""
    n = entry.agreement("test")[1]
    rate = kept(
        {f"class_preservation{end}": entry.metric(f"test/class_preservation{end}") for end in ("", "_low", "_high")}
    )
    text = f"{entry.label}: {rate} of {n} test reconstructions keep the class that the classifier gives the original."
    return Sentence(text, (entry.run.id, entry.classes["cnn_run"])) if n else None


def ten_findings(entry: Entry) -> list[Sentence]:
    """Say how many of the fixed digits changed class."""
    out = []
    for split, rows in entry.classes.get("ten", {}).items():
        moved = sum(row["original"] != row["reconstruction"] for row in rows)
        text = f"{entry.label}: {moved} of the {len(rows)} fixed {SPLITS[split]} digits changed class."
        out.append(Sentence(text, (entry.run.id,)))
    return out


def confusion_finding(entry: Entry) -> Sentence | None:
    """Name the classifier's most frequent mistake on test images."""
    if not (found := entry.classes.get("splits", {}).get("test")):
        return None
    counts = np.array(found["confusion"])
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    often = f", most often {row} as {column} ({counts.max()} of them)" if counts.any() else ""
    return Sentence(f"{entry.label} misreads {counts.sum()} of {found['n']} test images{often}.", (entry.run.id,))


def best_finding(entry: Entry, elbo: dict[int, float]) -> Sentence | None:
    """Say at which epoch the validation ELBO was best and where it ended."""
    if len(elbo) < 2:
        return None
    last, best = max(elbo), max(elbo, key=lambda epoch: elbo[epoch])
    end = "" if best == last else f"; {number(elbo[last])} at the last"
    text = f"{entry.label}: validation ELBO is highest at epoch {best} of {last} ({number(elbo[best])} nats{end})."
    return Sentence(text, (entry.run.id,))
