"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import isnan, nan, sqrt

import numpy as np
import pandas as pd

from elbolab.report.entries import SPLITS, Curves, Entry, Row, public
from elbolab.tracker import RunRecord

FLOOR = "constant image"
CLASS_RATES = ("accuracy_original", "accuracy_reconstruction")
COLUMNS = {
    "summary": "model run split posterior images log_px log_px_se posterior_elbo ess class_preservation "
    "class_preservation_se accuracy_original accuracy_reconstruction accuracy accuracy_se",
    "digits": "model run split digit images log_px log_px_se",
    "images": "digit index model run log_px std_err ess elbo",
    "curves": "model run key epoch value",
    "initialisation": "latent_init run epochs final_val_elbo best_val_elbo best_epoch test_log_px test_log_px_se",
    "runs": "run name model started data.name data.digest observation_model git.commit git.dirty device "
    "evaluation.samples evaluation.images evaluation.seed evaluation.posterior evaluation.cnn_run params",
}


def csv(name: str, rows: list[Row]) -> str:
    """Write a table as CSV, counts as whole numbers."""
    frame = pd.DataFrame(rows, columns=COLUMNS[name].split())
    counts = [column for column in ("images", "epochs", "best_epoch") if column in frame]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False)


def binomial_se(rate: float, n: int) -> float:
    """Standard error of a rate over n independent images."""
    return sqrt(max(rate * (1 - rate), 0.0) / n) if n else nan


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean over images; NaN where there are too few."""
    array = np.array(list(values))
    mean = float(array.mean()) if len(array) else nan
    return mean, float(array.std(ddof=1) / sqrt(len(array))) if len(array) > 1 else nan


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
                names = ("log_px", "log_px_se", "posterior_elbo", "ess", "class_preservation")
                row |= {name: entry.metric(f"{split}/{name}") for name in (*names, *CLASS_RATES)}
                row |= {"posterior": entry.run.tags.get("evaluation.posterior", "").partition(":")[0]}
                row |= {"images": len(entry.images(split)) or None}
                rows.append(row | {"class_preservation_se": binomial_se(row["class_preservation"], n)})
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


def starts_table(starts: Sequence[RunRecord], curves: Curves) -> list[Row]:
    """Final and best validation ELBO and test log p(x) in nats for each initialisation of the latent table."""
    rows = []
    for run in starts:
        elbo = curves.get((run.id, "val/elbo"), {})
        best = max(elbo, key=lambda epoch: elbo[epoch]) if elbo else None
        row: Row = {"latent_init": run.params["latent_init"], "run": run.id, "epochs": max(elbo, default=None)}
        row |= {"final_val_elbo": elbo[max(elbo)] if elbo else nan, "best_val_elbo": max(elbo.values(), default=nan)}
        row |= {"best_epoch": best, "test_log_px": run.metrics.get("test/log_px", nan)}
        rows.append(row | {"test_log_px_se": run.metrics.get("test/log_px_se", nan)})
    return rows


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
