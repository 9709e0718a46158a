"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, nan

import pandas as pd

from elbolab.intervals import binomial_se, mean_and_half_width, mean_se, paired
from elbolab.records import RunRecord
from elbolab.report.entries import SPLITS, Comparison, Curves, Entry, Row, Variant, public

FLOOR = "constant image"
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
COLUMNS = {
    "summary": "dataset model run split posterior images log_px log_px_se posterior_elbo ess class_preservation "
    "class_preservation_low class_preservation_high accuracy_original accuracy_reconstruction accuracy accuracy_se",
    "seeds": "dataset model runs metric seeds mean half_width",
    "pairs": "dataset model run other other_run split images mean low high above below",
    "digits": "dataset model run split digit images log_px log_px_se",
    "images": "dataset digit index model run log_px std_err ess elbo",
    "curves": "model run key epoch value",
    "ablations": "dataset model field value base runs seeds best_val_elbo best_epochs last_val_elbo "
    "test_log_px test_log_px_se images mean low high",
    "runs": "run name model started data.name data.digest observation_model git.commit git.dirty device "
    "evaluation.samples evaluation.images evaluation.seed evaluation.posterior evaluation.cnn_run params",
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
                rows.append(row | {"images": len(entry.images(split)) or None})
        if "train/log_px_table" in entry.run.metrics:
            row = {"model": entry.label, "run": entry.run.id, "split": "train", "posterior": "table"}
            row |= {"log_px": entry.metric("train/log_px_table"), "log_px_se": entry.metric("train/log_px_table_se")}
            rows.append(row | {"images": len(entry.images("train", table=True)) or None})
    for entry in [entry for entry in entries if "test/log_px_constant" in entry.run.metrics][:1]:
        for split in SPLITS:
            values = entry.images(split, "log_px_constant").values()
            row = {"model": FLOOR, "run": entry.run.id, "split": split, "posterior": "none"}
            row |= {"log_px": entry.metric(f"{split}/log_px_constant"), "log_px_se": mean_se(values)[1]}
            rows.append(row | {"images": len(values) or None})
    return rows


def digits_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean log p(x) of each class, split and run in nats, with its standard error over images."""
    rows = []
    for entry in entries:
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split)
            prefix = f"{split}/log_px_digit_"
            for digit in sorted(int(key.removeprefix(prefix)) for key in entry.run.metrics if key.startswith(prefix)):
                group = [value for index, value in values.items() if labels[index] == digit]
                row = {"model": entry.label, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                rows.append(row | {"log_px": entry.metric(f"{prefix}{digit}"), "log_px_se": mean_se(group)[1]})
    return rows


def images_table(entries: Sequence[Entry]) -> list[Row]:
    """The example images' log p(x) under each run in nats, with the importance noise of each estimate."""
    rows = []
    for entry in entries:
        columns = {name: entry.images("test", name) for name in ("log_px", "std_err", "ess", "elbo")}
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row: Row = {"digit": int(digit), "index": int(index), "model": entry.label, "run": entry.run.id}
            rows.append(row | {name: values.get(int(index), nan) for name, values in columns.items()})
    return sorted(rows, key=lambda row: (row["digit"], row["index"]))


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
    tags = ["data.name", "data.digest", "observation_model", "git.commit", "git.dirty", "device"]
    tags += [f"evaluation.{name}" for name in ("samples", "images", "seed", "posterior", "cnn_run")]
    rows = []
    for run in runs:
        started = datetime.fromtimestamp(run.start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        params = "; ".join(f"{key}={public(value)}" for key, value in sorted(run.params.items()) if key != "data_dir")
        row: Row = {"run": run.id, "name": run.name, "model": run.params["model"], "started": started}
        rows.append(row | {tag: public(run.tags.get(tag, "")) for tag in tags} | {"params": params})
    return rows
