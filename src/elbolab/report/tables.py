"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, nan

import numpy as np
import pandas as pd

from elbolab.evaluation.metrics import (
    ACCURACY,
    ACCURACY_ORIGINAL,
    ACCURACY_RECONSTRUCTION,
    CLASS_PRESERVATION,
    ELBO,
    ESS,
    FIDELITY,
    FLOOR,
    FRECHET_DISTANCE,
    GAP_COLUMNS,
    LOG_PX,
    LOG_PX_CONSTANT,
    LOG_PX_DIGIT,
    PARETO_K,
    POSTERIOR_ELBO,
    RATE,
    REPRESENTATION,
    STORED,
    TEST,
    TRAIN,
    VAL,
    Metric,
)
from elbolab.report.collect import SPLITS, Comparison, Curves, Entry, Row, Variant, public, value_of
from elbolab.support.statistics import is_heavy_tailed, is_unreliable, mean_and_half_width, mean_se, paired
from elbolab.tracking.mlflow_reader import RunRecord

CONSTANT, REAL = "constant image", "training images"
RATES = (CLASS_PRESERVATION, ACCURACY_ORIGINAL, ACCURACY_RECONSTRUCTION)
ACCURACY_SE = f"{ACCURACY.name}_se"
OVER_SEEDS = (
    *((LOG_PX, split) for split in SPLITS),
    *((metric, TEST) for metric in (POSTERIOR_ELBO, CLASS_PRESERVATION, ACCURACY)),
)
GAP = ("log_px_ais", "log_px_is", *list(GAP_COLUMNS)[1:])


def _columns(*parts: str | Metric) -> list[str]:
    return [name for part in parts for name in (part.split() if isinstance(part, str) else part.names)]


TRUST = (PARETO_K, "unreliable unreliable_share")
DATASET_RUN = "dataset model run"
COLUMNS = {
    "summary": _columns(
        *(f"{DATASET_RUN} split posterior images", LOG_PX, POSTERIOR_ELBO, ESS, *TRUST, *RATES, ACCURACY, ACCURACY_SE)
    ),
    "seeds": _columns("dataset model runs metric seeds mean half_width"),
    "pairs": _columns(f"{DATASET_RUN} other other_run split images mean low high above below"),
    "digits": _columns(f"{DATASET_RUN} split digit images", LOG_PX, *TRUST[:1], "unreliable"),
    "images": _columns("dataset digit index model run log_px std_err ess elbo", PARETO_K, "unreliable"),
    "bounds": _columns(f"{DATASET_RUN} split posterior samples log_px log_px_se"),
    "gap": _columns(f"{DATASET_RUN} split posterior images", *(f"{name} {name}_se" for name in GAP)),
    "representation": _columns(f"{DATASET_RUN} split images latent_dim", *REPRESENTATION),
    "fidelity": _columns(f"{DATASET_RUN} cnn_run", *FIDELITY),
    "curves": _columns("model run key epoch value"),
    "ablations": _columns(
        "dataset model field value base runs seeds best_val_elbo best_epochs last_val_elbo test_log_px test_log_px_se "
        "images mean low high"
    ),
    "runs": _columns(
        "run name model started data.name data.digest observation_model git.commit git.dirty device precision "
        "evaluation.samples evaluation.images evaluation.seed evaluation.posterior evaluation.cnn_run "
        "evaluation.cnn_test_accuracy params"
    ),
}


def make(
    entries: Sequence[Entry],
    variants: Sequence[Variant],
    curves: Curves,
    runs: Mapping[str, tuple[RunRecord, Entry]],
) -> dict[str, list[Row]]:
    """Every table of one dataset, by name."""
    return {
        "summary": summary_table(entries),
        "seeds": seeds_table(entries),
        "pairs": pairs_table(entries),
        "digits": digits_table(entries),
        "images": images_table(entries),
        "bounds": bounds_table(entries),
        "gap": gap_table(entries),
        "representation": representation_table(entries),
        "fidelity": fidelity_table(entries),
        "curves": curves_table(curves, {run: entry.label for run, (_, entry) in runs.items()}),
        "ablations": ablations_table(entries, variants, curves),
        "runs": runs_table(run for run, _ in runs.values()),
    }


def csv(name: str, comparisons: Iterable[Comparison]) -> str:
    """Write a table of all datasets as CSV, counts as whole numbers."""
    rows = [{"dataset": one.tag("data.name")} | row for one in comparisons for row in one.tables[name]]
    frame = pd.DataFrame(rows, columns=COLUMNS[name])
    counts = [column for column in ("images", "seeds") if column in frame]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False)


def summary_table(entries: Sequence[Entry]) -> list[Row]:
    """One row a run, split and posterior: means and rates with standard errors; nats, and rates in [0, 1]."""
    rows: list[Row] = []
    for entry in entries:
        for split in SPLITS:
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split}
            if not entry.latent:
                rate, error, n = entry.agreement(split)
                # Training logs the accuracies of its epochs; only the test key is the evaluation's.
                rate = entry.metric(ACCURACY, split) if split == TEST else rate
                if not isnan(rate):
                    rows.append(row | {"images": n or None, ACCURACY.name: rate, ACCURACY_SE: error})
            elif entry.has(LOG_PX, split):
                for metric in (LOG_PX, POSTERIOR_ELBO, ESS, *RATES):
                    row |= entry.measures(metric, split)
                row |= {"posterior": entry.inference, "images": len(entry.images(split)) or None}
                rows.append(row | _trust(entry, entry.images(split, "pareto_k").values()))
        if entry.has(STORED[LOG_PX], TRAIN):
            row = {"model": entry.label, "run": entry.run.id, "split": TRAIN, "posterior": "table"}
            row |= dict(zip(LOG_PX.names, entry.measures(STORED[LOG_PX], TRAIN).values(), strict=True))
            row |= {"images": len(entry.images(TRAIN, table=True)) or None}
            rows.append(row | _trust(entry, entry.images(TRAIN, "pareto_k", table=True).values()))
    for entry in _with_floor(entries):
        for split in SPLITS:
            values = entry.images(split, "log_px_constant").values()
            numbers = (entry.metric(LOG_PX_CONSTANT, split), mean_se(values)[1])
            row = {"model": CONSTANT, "run": entry.run.id, "split": split, "posterior": "none"}
            rows.append(row | dict(zip(LOG_PX.names, numbers, strict=True)) | {"images": len(values) or None})
    return rows


def _with_floor(entries: Sequence[Entry]) -> list[Entry]:
    """The entry that says what an image is worth that is decoded to the mean training image, if any does."""
    return [entry for entry in entries if entry.latent and entry.has(LOG_PX_CONSTANT, TEST)][:1]


def _trust(entry: Entry, ks: Iterable[float]) -> Row:
    """The median Pareto k of some images, for how many it is too high, and whether for most; empty without any."""
    known = np.array([k for k in ks if not isnan(k)])
    if not len(known):
        return {}
    share = float(is_heavy_tailed(known, entry.samples).mean())
    return {PARETO_K.name: float(np.median(known)), "unreliable": is_unreliable(share), "unreliable_share": share}


def digits_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean log p(x) of each class, split and run in nats, with its standard error over images."""
    rows = []
    for entry in entries:
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split)
            ks = entry.images(split, "pareto_k")
            for digit in sorted({int(label) for label in labels.values()}):
                group = [value for index, value in values.items() if labels[index] == digit]
                row = {"model": entry.label, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                numbers = (entry.metric(LOG_PX_DIGIT, split, D=digit), mean_se(group)[1])
                row |= dict(zip(LOG_PX.names, numbers, strict=True))
                rows.append(row | _trust(entry, (k for index, k in ks.items() if labels[index] == digit)))
    for entry in _with_floor(entries):
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split, "log_px_constant")
            for digit in sorted({int(label) for label in labels.values()}):
                group = [value for index, value in values.items() if labels[index] == digit]
                row = {"model": CONSTANT, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                rows.append(row | dict(zip(LOG_PX.names, mean_se(group), strict=True)))
    return rows


def images_table(entries: Sequence[Entry]) -> list[Row]:
    """The example images' log p(x) under each run in nats, with the importance noise of each estimate."""
    rows = []
    for entry in entries:
        columns = {name: entry.images(TEST, name) for name in ("log_px", "std_err", "ess", "elbo")}
        ks = entry.images(TEST, "pareto_k")
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row: Row = {"digit": int(digit), "index": int(index), "model": entry.label, "run": entry.run.id}
            row |= {name: values.get(int(index), nan) for name, values in columns.items()}
            rows.append(row | _trust(entry, [ks.get(int(index), nan)]))
    for entry in _with_floor(entries):
        values = entry.images(TEST, "log_px_constant")
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row = {"digit": int(digit), "index": int(index), "model": CONSTANT, "run": entry.run.id}
            rows.append(row | {"log_px": values.get(int(index), nan)})
    return sorted(rows, key=lambda row: (row["digit"], row["index"]))


def bounds_table(entries: Sequence[Entry]) -> list[Row]:
    """The mean importance-weighted bound on log p(x) by its number of samples, in nats, with its standard error."""
    return [
        {"model": entry.label, "run": entry.run.id, **row}
        for entry in entries
        for row in entry.bounds.to_dict("records")
    ]


def gap_table(entries: Sequence[Entry]) -> list[Row]:
    """Means over images of log p(x), of the two ELBOs below it and of the gaps between them, in nats, with errors."""
    rows = []
    for entry in [entry for entry in entries if not entry.gaps.empty]:
        for split, posterior in entry.gaps[["split", "posterior"]].drop_duplicates().values.tolist():
            part = entry.gaps.query("split == @split and posterior == @posterior")
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split, "posterior": posterior}
            row |= {"images": len(part)}
            for column in GAP:
                row[column], row[f"{column}_se"] = mean_se(part[column])
            rows.append(row)
    return rows


def representation_table(entries: Sequence[Entry]) -> list[Row]:
    """Active units, and rate, distortion and aggregate KL in nats, a row a run and split."""
    rows = []
    for entry in entries:
        for split in [split for split in SPLITS if entry.has(RATE, split)]:
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split}
            row |= {"images": len(entry.images(split)) or None, "latent_dim": entry.run.params.get("latent_dim")}
            rows.append(row | {metric.name: entry.metric(metric, split) for metric in REPRESENTATION})
    return rows


def fidelity_table(entries: Sequence[Entry]) -> list[Row]:
    """Distances of samples from test images, a row a run, and after the runs of each cnn and protocol their floor."""
    groups: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in [entry for entry in entries if entry.has(FRECHET_DISTANCE, TEST)]:
        key = tuple(entry.run.tags.get(f"evaluation.{name}") for name in ("cnn_run", "images", "seed"))
        groups.setdefault(key, []).append(entry)
    rows = []
    for (cnn, *_), group in groups.items():
        for entry, name in [*((entry, entry.label) for entry in group), (group[0], REAL)]:
            row: Row = {"model": name, "run": entry.run.id, "cnn_run": cnn}
            for metric in FIDELITY:
                found = entry.measures(FLOOR[metric] if name == REAL else metric, TEST)
                row |= dict(zip(metric.names, found.values(), strict=True))
            rows.append(row)
    return rows


def curves_table(curves: Curves, labels: dict[str, str]) -> list[Row]:
    """Every training and validation value, a row a run, key and epoch."""
    return [
        {"model": label, "run": run, "key": key, "epoch": epoch, "value": value}
        for run, label in labels.items()
        for (owner, key), values in curves.items()
        if owner == run
        for epoch, value in values.items()
    ]


def seeds_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean of each metric over the seeds of an entry that has several, and half of its 95% interval's width."""
    rows = []
    for entry in [entry for entry in entries if len(entry.runs) > 1]:
        runs = " ".join(run.id for run in entry.runs)
        for metric in [metric.at(split) for metric, split in OVER_SEEDS]:
            values = [run.metrics[metric] for run in entry.runs if metric in run.metrics]
            if len(values) > 1:
                mean, half = mean_and_half_width(values)
                row: Row = {"model": entry.label, "runs": runs, "metric": metric, "seeds": len(values)}
                rows.append(row | {"mean": mean, "half_width": half})
    return rows


def pairs_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean difference in log p(x) of every two entries on the same images, in nats, with its interval."""
    rows = []
    for split in (TEST, TRAIN):
        for one, other in combinations([entry for entry in entries if entry.latent], 2):
            if found := paired(other.mean_log_px(split), one.mean_log_px(split)):
                row: Row = {"model": other.label, "run": other.run.id, "other": one.label, "other_run": one.run.id}
                rows.append(row | {"split": split} | asdict(found))
    return rows


def ablations_table(entries: Sequence[Entry], variants: Sequence[Variant], curves: Curves) -> list[Row]:
    """Each entry that has variants, and after it the variants; validation ELBO and test log p(x) over their seeds."""
    rows = []
    for base in entries:
        if mine := [variant for variant in variants if variant.base is base]:
            rows.append({"model": base.label, "field": "", "value": "", "base": "", **_outcome(base, curves)})
        for variant in mine:
            was = value_of(base, variant.field)
            row: Row = {"model": base.label, "field": variant.field, "value": variant.value, "base": was}
            gap = paired(variant.entry.mean_log_px(TEST), base.mean_log_px(TEST))
            rows.append(row | _outcome(variant.entry, curves) | (asdict(gap) if gap else {}))
    return rows


def _outcome(entry: Entry, curves: Curves) -> Row:
    """Return how the trainings of an entry went, means over its seeds in nats."""
    elbos = [elbo for run in entry.runs if (elbo := curves.get((run.id, ELBO.at(VAL))))]
    best = [max(elbo, key=lambda epoch: elbo[epoch]) for elbo in elbos]
    test, error = mean_se(entry.mean_log_px(TEST).values())
    return {
        "runs": " ".join(run.id for run in entry.runs),
        "seeds": len(entry.runs),
        "best_val_elbo": mean_se(elbo[epoch] for elbo, epoch in zip(elbos, best, strict=True))[0],
        "best_epochs": " ".join(map(str, best)),
        "last_val_elbo": mean_se(elbo[max(elbo)] for elbo in elbos)[0],
        "test_log_px": test,
        "test_log_px_se": error,
    }


def runs_table(runs: Iterable[RunRecord]) -> list[Row]:
    """Every run that the report uses, with its data, code, device, evaluation protocol and parameters."""
    tags = ["data.name", "data.digest", "observation_model", "git.commit", "git.dirty", "device", "precision"]
    tags += [f"evaluation.{name}" for name in ("samples", "images", "seed", "posterior")]
    tags += [f"evaluation.{name}" for name in ("cnn_run", "cnn_test_accuracy")]
    rows = []
    for run in runs:
        started = datetime.fromtimestamp(run.start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        params = "; ".join(f"{key}={public(value)}" for key, value in sorted(run.params.items()) if key != "data_dir")
        row: Row = {"run": run.id, "name": run.name, "model": run.params["model"], "started": started}
        rows.append(row | {tag: public(run.tags.get(tag, "")) for tag in tags} | {"params": params})
    return rows
