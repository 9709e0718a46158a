"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, nan

import numpy as np
import pandas as pd

from elbolab.evaluation import metrics as m
from elbolab.report.collect import SPLITS, Comparison, Curves, Entry, Row, Variant, public, value_of
from elbolab.support.statistics import is_heavy_tailed, is_unreliable, mean_and_half_width, mean_se, paired
from elbolab.tracking.mlflow_reader import RunRecord

CONSTANT, REAL = "constant image", "training images"
FLAT = "log_px_constant"
RATES = (m.CLASS_PRESERVATION, m.ACCURACY_ORIGINAL, m.ACCURACY_RECONSTRUCTION)
ACCURACY_SE = f"{m.ACCURACY.name}_se"
OVER_SEEDS = (
    *((m.LOG_PX, split) for split in SPLITS),
    *((metric, m.TEST) for metric in (m.POSTERIOR_ELBO, m.CLASS_PRESERVATION, m.ACCURACY)),
)
TAGS = (
    *("data.name", "data.digest", "observation_model", "git.commit", "git.dirty", "device", "precision"),
    *(f"evaluation.{name}" for name in ("samples", "images", "seed", "posterior", "cnn_run", "cnn_test_accuracy")),
)
GAP = ("log_px_ais", "log_px_is", *list(m.GAP_COLUMNS)[1:])


MEAN, ERROR = m.LOG_PX.names


def _columns(words: str, *metrics: m.Metric, end: str = "") -> list[str]:
    return [*words.split(), *(name for metric in metrics for name in metric.names), *end.split()]


RUN = "dataset model run"
COLUMNS = {
    "summary": _columns(
        *(f"{RUN} split posterior images", m.LOG_PX, m.POSTERIOR_ELBO, m.ESS, m.PARETO_K),
        end=" ".join(["unreliable unreliable_share", *_columns("", *RATES, m.ACCURACY), ACCURACY_SE]),
    ),
    "seeds": _columns("dataset model runs metric seeds mean half_width"),
    "pairs": _columns(f"{RUN} other other_run split images mean low high above below"),
    "digits": _columns(f"{RUN} split digit images", m.LOG_PX, m.PARETO_K, end="unreliable"),
    "images": _columns("dataset digit index model run log_px std_err ess elbo", m.PARETO_K, end="unreliable"),
    "bounds": _columns(f"{RUN} split posterior samples log_px log_px_se"),
    "gap": _columns(f"{RUN} split posterior images {' '.join(f'{name} {name}_se' for name in GAP)}"),
    "representation": _columns(f"{RUN} split images latent_dim", *m.REPRESENTATION),
    "fidelity": _columns(f"{RUN} cnn_run", *m.FIDELITY),
    "curves": _columns("model run key epoch value"),
    "ablations": _columns(
        "dataset model field value base runs seeds best_val_elbo best_epochs last_val_elbo test_log_px test_log_px_se "
        "images mean low high"
    ),
    "runs": _columns(f"run name model started {' '.join(TAGS)} params"),
}


def make(
    entries: Sequence[Entry],
    variants: Sequence[Variant],
    curves: Curves,
    runs: Mapping[str, tuple[RunRecord, Entry]],
) -> dict[str, list[Row]]:
    """Every table of one dataset, by name."""
    of_entries = {
        "summary": summary_table,
        "seeds": seeds_table,
        "pairs": pairs_table,
        "digits": digits_table,
        "images": images_table,
        "bounds": bounds_table,
        "gap": gap_table,
        "representation": representation_table,
        "fidelity": fidelity_table,
    }
    return {name: make(entries) for name, make in of_entries.items()} | {
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
                rate = entry.metric(m.ACCURACY, split) if split == m.TEST else rate
                if not isnan(rate):
                    rows.append(row | {"images": n or None, m.ACCURACY.name: rate, ACCURACY_SE: error})
            elif entry.has(m.LOG_PX, split):
                for metric in (m.LOG_PX, m.POSTERIOR_ELBO, m.ESS, *RATES):
                    row |= entry.measures(metric, split)
                row |= {"posterior": entry.inference, "images": len(entry.images(split)) or None}
                rows.append(row | _trust(entry, entry.images(split, "pareto_k").values()))
        if entry.has(m.STORED[m.LOG_PX], m.TRAIN):
            row = {"model": entry.label, "run": entry.run.id, "split": m.TRAIN, "posterior": "table"}
            mean, error = entry.measures(m.STORED[m.LOG_PX], m.TRAIN).values()
            row |= {MEAN: mean, ERROR: error, "images": len(entry.images(m.TRAIN, table=True)) or None}
            rows.append(row | _trust(entry, entry.images(m.TRAIN, "pareto_k", table=True).values()))
    for entry in _with_floor(entries):
        for split in SPLITS:
            values = entry.images(split, FLAT).values()
            row = {"model": CONSTANT, "run": entry.run.id, "split": split, "posterior": "none"}
            row |= {MEAN: entry.metric(m.LOG_PX_CONSTANT, split), ERROR: mean_se(values)[1]}
            rows.append(row | {"images": len(values) or None})
    return rows


def _with_floor(entries: Sequence[Entry]) -> list[Entry]:
    """The entry that says what an image is worth that is decoded to the mean training image, if any does."""
    return [entry for entry in entries if entry.latent and entry.has(m.LOG_PX_CONSTANT, m.TEST)][:1]


def _trust(entry: Entry, ks: Iterable[float]) -> Row:
    """The median Pareto k of some images, for how many it is too high, and whether for most; empty without any."""
    known = np.array([k for k in ks if not isnan(k)])
    if not len(known):
        return {}
    share = float(is_heavy_tailed(known, entry.samples).mean())
    return {m.PARETO_K.name: float(np.median(known)), "unreliable": is_unreliable(share), "unreliable_share": share}


def digits_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean log p(x) of each class, split and run in nats, with its standard error over images."""
    rows = []
    floor = _with_floor(entries)
    for entry, name, column in [
        *((one, one.label, "log_px") for one in entries),
        *((f, CONSTANT, FLAT) for f in floor),
    ]:
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split, column)
            ks = entry.images(split, "pareto_k") if name is not CONSTANT else {}
            for digit in sorted({int(label) for label in labels.values()}):
                mean, error = mean_se(group := [value for index, value in values.items() if labels[index] == digit])
                mean = mean if name is CONSTANT else entry.metric(m.LOG_PX_DIGIT, split, D=digit)
                row: Row = {"model": name, "run": entry.run.id, "split": split, "digit": digit, "images": len(group)}
                row |= _trust(entry, (k for index, k in ks.items() if labels[index] == digit))
                rows.append(row | {MEAN: mean, ERROR: error})
    return rows


def images_table(entries: Sequence[Entry]) -> list[Row]:
    """The example images' log p(x) under each run in nats, with the importance noise of each estimate."""
    rows = []
    for entry in entries:
        columns = {name: entry.images(m.TEST, name) for name in ("log_px", "std_err", "ess", "elbo")}
        ks = entry.images(m.TEST, "pareto_k")
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            row: Row = {"digit": int(digit), "index": int(index), "model": entry.label, "run": entry.run.id}
            row |= {name: values.get(int(index), nan) for name, values in columns.items()}
            rows.append(row | _trust(entry, [ks.get(int(index), nan)]))
    for entry in _with_floor(entries):
        values = entry.images(m.TEST, FLAT)
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
        for split in [split for split in SPLITS if entry.has(m.RATE, split)]:
            row: Row = {"model": entry.label, "run": entry.run.id, "split": split}
            row |= {"images": len(entry.images(split)) or None, "latent_dim": entry.run.params.get("latent_dim")}
            rows.append(row | {metric.name: entry.metric(metric, split) for metric in m.REPRESENTATION})
    return rows


def fidelity_table(entries: Sequence[Entry]) -> list[Row]:
    """Distances of samples from test images, a row a run, and after the runs of each cnn and protocol their floor."""
    groups: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in [entry for entry in entries if entry.has(m.FRECHET_DISTANCE, m.TEST)]:
        key = tuple(entry.run.tags.get(f"evaluation.{name}") for name in ("cnn_run", "images", "seed"))
        groups.setdefault(key, []).append(entry)
    rows = []
    for (cnn, *_), group in groups.items():
        for entry, name in [*((entry, entry.label) for entry in group), (group[0], REAL)]:
            row: Row = {"model": name, "run": entry.run.id, "cnn_run": cnn}
            for metric in m.FIDELITY:
                found = entry.measures(m.FLOOR[metric] if name == REAL else metric, m.TEST)
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
    for split in (m.TEST, m.TRAIN):
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
            gap = paired(variant.entry.mean_log_px(m.TEST), base.mean_log_px(m.TEST))
            rows.append(row | _outcome(variant.entry, curves) | (asdict(gap) if gap else {}))
    return rows


def _outcome(entry: Entry, curves: Curves) -> Row:
    """Return how the trainings of an entry went, means over its seeds in nats."""
    elbos = [elbo for run in entry.runs if (elbo := curves.get((run.id, m.ELBO.at(m.VAL))))]
    best = [max(elbo, key=lambda epoch: elbo[epoch]) for elbo in elbos]
    test, error = mean_se(entry.mean_log_px(m.TEST).values())
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
    rows = []
    for run in runs:
        started = datetime.fromtimestamp(run.start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        params = "; ".join(f"{key}={public(value)}" for key, value in sorted(run.params.items()) if key != "data_dir")
        row: Row = {"run": run.id, "name": run.name, "model": run.params["model"], "started": started}
        rows.append(row | {tag: public(run.tags.get(tag, "")) for tag in TAGS} | {"params": params})
    return rows
