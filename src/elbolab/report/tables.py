"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, nan

import numpy as np
import pandas as pd

from elbolab.report.collect import SPLITS, Comparison, Curves, Entry, Row, Variant, public
from elbolab.support.statistics import binomial_se, mean_and_half_width, mean_se, paired
from elbolab.tracking.mlflow_reader import RunRecord

FLOOR, REAL = "constant image", "training images"
SEED_METRICS = (
    *(f"{split}/log_px" for split in SPLITS),
    "test/posterior_elbo",
    "test/class_preservation",
    "test/accuracy",
)
CLASS_RATES = (
    *("class_preservation", "class_preservation_low", "class_preservation_high"),
    *("accuracy_original", "accuracy_reconstruction"),
)
GAP_COLUMNS = (
    *("log_px_ais", "log_px_is", "log_px", "elbo_best", "elbo"),
    *("approximation_gap", "amortization_gap", "inference_gap"),
)
REPRESENTATION = ("active_units", "rate", "distortion", "aggregate_kl")
FIDELITY = ("frechet_distance", "kid", "kid_se", "precision", "recall", "density", "coverage")
COLUMNS = {
    "summary": "dataset model run split posterior images log_px log_px_se posterior_elbo ess pareto_k unreliable "
    "unreliable_share class_preservation class_preservation_low class_preservation_high accuracy_original "
    "accuracy_reconstruction accuracy accuracy_se",
    "seeds": "dataset model runs metric seeds mean half_width",
    "pairs": "dataset model run other other_run split images mean low high above below",
    "digits": "dataset model run split digit images log_px log_px_se pareto_k unreliable",
    "images": "dataset digit index model run log_px std_err ess elbo pareto_k unreliable",
    "bounds": "dataset model run split posterior samples log_px log_px_se",
    "gap": "dataset model run split posterior images " + " ".join(f"{column} {column}_se" for column in GAP_COLUMNS),
    "representation": "dataset model run split images latent_dim active_units rate distortion aggregate_kl",
    "fidelity": "dataset model run cnn_run frechet_distance kid kid_se precision recall density coverage",
    "curves": "model run key epoch value",
    "ablations": "dataset model field value base runs seeds best_val_elbo best_epochs last_val_elbo "
    "test_log_px test_log_px_se images mean low high",
    "runs": "run name model started data.name data.digest observation_model git.commit git.dirty device precision "
    "evaluation.samples evaluation.images evaluation.seed evaluation.posterior evaluation.cnn_run "
    "evaluation.cnn_test_accuracy params",
}


def csv(name: str, comparisons: Iterable[Comparison]) -> str:
    """Write a table of all datasets as CSV, counts as whole numbers."""
    rows = [{"dataset": one.tag("data.name")} | row for one in comparisons for row in one.tables[name]]
    frame = pd.DataFrame(rows, columns=COLUMNS[name].split())
    counts = [column for column in ("images", "seeds") if column in frame]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False)


def summary_table(entries: Sequence[Entry]) -> list[Row]:
    """One row a run, split and posterior: means and rates with standard errors; nats, and rates in [0, 1]."""
    rows: list[Row] = []
    for entry in entries:
        for split in SPLITS:
            rate, n = entry.agreement(split)
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split}
            if not entry.latent:
                # Training logs train/accuracy and val/accuracy of its own; only the test key is the evaluation's.
                rate = entry.metric("test/accuracy") if split == "test" else rate
                if not isnan(rate):
                    rows.append(row | {"images": n or None, "accuracy": rate, "accuracy_se": binomial_se(rate, n)})
            elif f"{split}/log_px" in entry.run.metrics:
                names = ("log_px", "log_px_se", "posterior_elbo", "ess")
                row |= {name: entry.metric(f"{split}/{name}") for name in (*names, *CLASS_RATES)}
                row |= {"posterior": entry.run.tags.get("evaluation.posterior", "").partition(":")[0]}
                row |= {"images": len(entry.images(split)) or None}
                rows.append(row | _trust(entry, entry.images(split, "pareto_k").values()))
        if "train/log_px_table" in entry.run.metrics:
            row = {"model": entry.label, "run": entry.run.id, "split": "train", "posterior": "table"}
            row |= {"log_px": entry.metric("train/log_px_table"), "log_px_se": entry.metric("train/log_px_table_se")}
            row |= {"images": len(entry.images("train", table=True)) or None}
            rows.append(row | _trust(entry, entry.images("train", "pareto_k", table=True).values()))
    for entry in _with_floor(entries):
        for split in SPLITS:
            values = entry.images(split, "log_px_constant").values()
            row = {"model": FLOOR, "run": entry.run.id, "split": split, "posterior": "none"}
            row |= {"log_px": entry.metric(f"{split}/log_px_constant"), "log_px_se": mean_se(values)[1]}
            rows.append(row | {"images": len(values) or None})
    return rows


def _with_floor(entries: Sequence[Entry]) -> list[Entry]:
    """The entry that says what an image is worth that is decoded to the mean training image, if any does."""
    return [entry for entry in entries if "test/log_px_constant" in entry.run.metrics][:1]


def _trust(entry: Entry, ks: Iterable[float]) -> Row:
    """The median Pareto k of some images, whether it is too high, and for how many of them; empty without any."""
    known = np.array([k for k in ks if not isnan(k)])
    if not len(known):
        return {}
    median, above = float(np.median(known)), known > entry.k_threshold
    return {"pareto_k": median, "unreliable": median > entry.k_threshold, "unreliable_share": float(above.mean())}


def digits_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean log p(x) of each class, split and run in nats, with its standard error over images."""
    rows = []
    for entry in entries:
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split)
            ks = entry.images(split, "pareto_k")
            prefix = f"{split}/log_px_digit_"
            for digit in sorted(int(key.removeprefix(prefix)) for key in entry.run.metrics if key.startswith(prefix)):
                group = [value for index, value in values.items() if labels[index] == digit]
                row = {"model": entry.label, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                row |= {"log_px": entry.metric(f"{prefix}{digit}"), "log_px_se": mean_se(group)[1]}
                rows.append(row | _trust(entry, (k for index, k in ks.items() if labels[index] == digit)))
    for entry in _with_floor(entries):
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split, "log_px_constant")
            for digit in sorted({int(label) for label in labels.values()}):
                group = [value for index, value in values.items() if labels[index] == digit]
                mean, error = mean_se(group)
                row = {"model": FLOOR, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                rows.append(row | {"log_px": mean, "log_px_se": error})
    return rows


def images_table(entries: Sequence[Entry]) -> list[Row]:
    """The example images' log p(x) under each run in nats, with the importance noise of each estimate."""
    rows = []
    for entry in entries:
        columns = {name: entry.images("test", name) for name in ("log_px", "std_err", "ess", "elbo")}
        ks = entry.images("test", "pareto_k")
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row: Row = {"digit": int(digit), "index": int(index), "model": entry.label, "run": entry.run.id}
            row |= {name: values.get(int(index), nan) for name, values in columns.items()}
            rows.append(row | _trust(entry, [ks.get(int(index), nan)]))
    for entry in _with_floor(entries):
        values = entry.images("test", "log_px_constant")
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row = {"digit": int(digit), "index": int(index), "model": FLOOR, "run": entry.run.id}
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
            for column in GAP_COLUMNS:
                row[column], row[f"{column}_se"] = mean_se(part[column])
            rows.append(row)
    return rows


def representation_table(entries: Sequence[Entry]) -> list[Row]:
    """Active units, and rate, distortion and aggregate KL in nats, a row a run and split."""
    rows = []
    for entry in entries:
        for split in [split for split in SPLITS if f"{split}/rate" in entry.run.metrics]:
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split}
            row |= {"images": len(entry.images(split)) or None, "latent_dim": entry.run.params.get("latent_dim")}
            rows.append(row | {name: entry.metric(f"{split}/{name}") for name in REPRESENTATION})
    return rows


def fidelity_table(entries: Sequence[Entry]) -> list[Row]:
    """Distances of samples from test images, a row a run, and after the runs of each cnn and protocol their floor."""
    groups: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in [entry for entry in entries if "test/frechet_distance" in entry.run.metrics]:
        key = tuple(entry.run.tags.get(f"evaluation.{name}") for name in ("cnn_run", "images", "seed"))
        groups.setdefault(key, []).append(entry)
    rows = []
    for (cnn, *_), group in groups.items():
        for entry, name, suffix in [*((entry, entry.label, "") for entry in group), (group[0], REAL, "_floor")]:
            row: Row = {"model": name, "run": entry.run.id, "cnn_run": cnn}
            rows.append(row | {key: entry.metric(f"test/{key}{suffix}") for key in FIDELITY})
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
        for metric in SEED_METRICS:
            values = [run.metrics[metric] for run in entry.runs if metric in run.metrics]
            if len(values) > 1:
                mean, half = mean_and_half_width(values)
                row: Row = {"model": entry.label, "runs": runs, "metric": metric, "seeds": len(values)}
                rows.append(row | {"mean": mean, "half_width": half})
    return rows


def pairs_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean difference in log p(x) of every two entries on the same images, in nats, with its interval."""
    rows = []
    for split in ("test", "train"):
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
            was = public(base.run.params.get(variant.field, "unset"))
            row: Row = {"model": base.label, "field": variant.field, "value": variant.value, "base": was}
            gap = paired(variant.entry.mean_log_px("test"), base.mean_log_px("test"))
            rows.append(row | _outcome(variant.entry, curves) | (asdict(gap) if gap else {}))
    return rows


def _outcome(entry: Entry, curves: Curves) -> Row:
    """Return how the trainings of an entry went, means over its seeds in nats."""
    elbos = [elbo for run in entry.runs if (elbo := curves.get((run.id, "val/elbo")))]
    best = [max(elbo, key=lambda epoch: elbo[epoch]) for elbo in elbos]
    test, error = mean_se(entry.mean_log_px("test").values())
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
