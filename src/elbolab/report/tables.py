"""The tables of a report, as rows of plain values: what its CSV files hold and its page shows."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from elbolab.evaluation import metrics as m
from elbolab.report.collect import SPLITS, TABLE, Comparison, Curves, Entry, Row, Variant, value_of
from elbolab.report.differences import apart, both_converged
from elbolab.report.select import FITTED
from elbolab.support.paths import public
from elbolab.support.statistics import is_unreliable, mean_and_half_width, mean_se
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
    *(
        f"evaluation.{name}"
        for name in ("method", "tolerance", "samples", "images", "seed", "posterior", "git.commit", "git.dirty")
    ),
    *(f"evaluation.{name}" for name in ("cnn_run", "cnn_test_accuracy")),
)

MEAN, ERROR = m.LOG_PX.names


def _names(*metrics: m.Metric) -> str:
    return " ".join(name for metric in metrics for name in metric.names)


RUN = "dataset model run"
COLUMNS = {
    "summary": f"{RUN} split posterior images {_names(m.LOG_PX, m.POSTERIOR_ELBO, m.ESS, m.PARETO_K)} unreliable "
    f"unreliable_share {_names(*RATES, m.ACCURACY)} {ACCURACY_SE} {_names(m.BITS_PER_DIM)}",
    "seeds": "dataset model runs metric seeds mean half_width",
    "pairs": f"{RUN} other other_run split converged images seeds mean low high above below",
    "digits": f"{RUN} split digit images {_names(m.LOG_PX, m.PARETO_K)} unreliable",
    "images": f"dataset digit index model run log_px std_err ess elbo {_names(m.PARETO_K)} unreliable",
    "bounds": f"{RUN} split posterior samples log_px log_px_se",
    "gap": f"{RUN} split posterior images {' '.join(f'{name} {name}_se' for name in m.GAP_COLUMNS)}",
    "representation": f"{RUN} split images latent_dim {_names(*m.REPRESENTATION)}",
    "fidelity": f"{RUN} cnn_run {_names(*m.FIDELITY)}",
    "ood": f"{RUN} ood images other_images "
    + " ".join(f"{name}{end}" for name in ("auroc_" + score for score in m.OOD_SCORES) for end in ("", "_se"))
    + " log_px other_log_px regret other_regret unreliable_share",
    "curves": "model run key epoch value",
    "ablations": "dataset model field value base runs seeds converged best_val_elbo best_epochs last_val_elbo "
    "test_log_px test_log_px_se images mean low high",
    "runs": f"run name model started {' '.join(TAGS)} params",
}
"""The tables, each by its name with its columns in order."""


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
        "bounds": [_row(entry) | row for entry in entries for row in entry.bounds.to_dict("records")],
        "gap": gap_table(entries),
        "representation": representation_table(entries),
        "fidelity": fidelity_table(entries),
        "ood": ood_table(entries),
        "curves": curves_table(curves, runs),
        "ablations": ablations_table(entries, variants, curves),
        "runs": runs_table(run for run, _ in runs.values()),
    }


def _row(entry: Entry, name: str = "", **cells: Any) -> Row:
    """Begin a row of an entry, or of what the name says that was measured with its run."""
    return {"model": name or entry.label, "run": entry.run.id, **cells}


def csv(name: str, comparisons: Iterable[Comparison]) -> str:
    """Write a table of all datasets as CSV, counts as whole numbers."""
    rows = [{"dataset": one.tag("data.name")} | row for one in comparisons for row in one.tables[name]]
    frame = pd.DataFrame(rows, columns=COLUMNS[name].split())
    counts = [column for column in ("images", "other_images", "seeds", "epoch") if column in frame]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False)


def summary_table(entries: Sequence[Entry]) -> list[Row]:
    """One row a run, split and posterior: means and rates with standard errors; nats, and rates in [0, 1]."""
    rows: list[Row] = []
    for entry in entries:
        for split in SPLITS:
            if not entry.latent:
                rate, error, n = entry.agreement(split)
                # Training logs the accuracies of its epochs; only the test key is the evaluation's.
                rate = entry.metric(m.ACCURACY, split) if split == m.TEST else rate
                if not isnan(rate):
                    figures = {m.ACCURACY.name: rate, ACCURACY_SE: error}
                    rows.append(_row(entry, split=split, images=n or None) | figures)
            elif entry.has(m.LOG_PX, split):
                row = _row(entry, split=split, posterior=entry.inference, images=len(entry.images(split)) or None)
                for metric in (m.LOG_PX, m.BITS_PER_DIM, m.POSTERIOR_ELBO, m.ESS, *RATES):
                    row |= entry.measures(metric, split)
                rows.append(row | _trust(entry.doubts(split).values(), entry.images(split, "pareto_k").values()))
        if entry.has(m.STORED[m.LOG_PX], m.TRAIN):
            images = len(entry.images(m.TRAIN, posterior=TABLE)) or None
            mean, error = entry.measures(m.STORED[m.LOG_PX], m.TRAIN).values()
            row = _row(entry, split=m.TRAIN, posterior=TABLE, images=images) | {MEAN: mean, ERROR: error}
            ks = entry.images(m.TRAIN, "pareto_k", TABLE)
            rows.append(row | _trust(entry.doubts(m.TRAIN, TABLE).values(), ks.values()))
        if entry.latent and entry.has(m.FITTED[m.POSTERIOR_ELBO], m.TEST):
            row = _row(entry, split=m.TEST, posterior=FITTED, images=len(entry.images(m.TEST, "elbo", FITTED)) or None)
            for metric, fitted in m.FITTED.items():
                row |= dict(zip(metric.names, entry.measures(fitted, m.TEST).values(), strict=True))
            rows.append(row)
    for entry, name in _with_floor(entries)[len(entries) :]:
        for split in SPLITS:
            values = entry.images(split, FLAT).values()
            row = _row(entry, name, split=split, posterior="none", images=len(values) or None)
            # Of all images of a split it has no error.
            error = mean_se(values)[1] if not entry.populations else nan
            rows.append(row | {MEAN: entry.metric(m.LOG_PX_CONSTANT, split), ERROR: error})
    return rows


def _with_floor(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """The entries with their names, and last one that says what an image decoded to the mean is worth, if any does."""
    floor = [entry for entry in entries if entry.latent and entry.has(m.LOG_PX_CONSTANT, m.TEST)]
    return [*((entry, entry.label) for entry in entries), *((entry, CONSTANT) for entry in floor[:1])]


def _trust(doubts: Iterable[float], ks: Iterable[float]) -> Row:
    """For how many images the estimate is unreliable, whether for most, and the median Pareto k; empty without any."""
    if not (known := list(doubts)):
        return {}
    share = float(np.mean(known))
    found: Row = {"unreliable": is_unreliable(share), "unreliable_share": share}
    if have := [k for k in ks if not isnan(k)]:
        found[m.PARETO_K.name] = float(np.median(have))
    return found


def digits_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean log p(x) of each class, split and run in nats, with its standard error over images."""
    rows = []
    for entry, name in _with_floor(entries):
        for split in SPLITS:
            labels, values = entry.images(split, "label"), entry.images(split, FLAT if name is CONSTANT else "log_px")
            doubts = entry.doubts(split) if name is not CONSTANT else {}
            ks = entry.images(split, "pareto_k") if name is not CONSTANT else {}
            for digit in sorted({int(label) for label in labels.values()}):
                group = [value for index, value in values.items() if labels[index] == digit]
                mean, error = mean_se(group)
                if name is not CONSTANT:
                    key = m.LOG_PX_DIGIT.at(split, D=digit)
                    mean, error = entry.run.metrics.get(key, nan), entry.run.metrics.get(f"{key}_se", error)
                elif len(whole := entry.constants(split, digit)):
                    # Of all images of a class it has no error.
                    mean, error = whole.mean(), nan
                row = _row(entry, name, split=split, digit=digit, images=len(group)) | {MEAN: mean, ERROR: error}
                own = [{i: v for i, v in of.items() if labels[i] == digit}.values() for of in (doubts, ks)]
                rows.append(row | _trust(*own))
    return rows


def images_table(entries: Sequence[Entry]) -> list[Row]:
    """The example images' log p(x) under each run in nats, with the importance noise of each estimate."""
    rows = []
    for entry, name in _with_floor(entries):
        names = {key: key for key in ("log_px", "std_err", "ess", "elbo", "pareto_k")}
        columns = {"log_px": FLAT} if name is CONSTANT else names
        values = {key: entry.images(m.TEST, column) for key, column in columns.items()}
        for index, digit in zip(entry.examples.get("index", ()), entry.examples.get("label", ()), strict=True):
            figures = {key: column.get(int(index), nan) for key, column in values.items()}
            doubt = entry.doubts(m.TEST) if name is not CONSTANT else {}
            own = [doubt[int(index)]] if int(index) in doubt else []
            trust = _trust(own, [figures.pop("pareto_k", nan)])
            rows.append(_row(entry, name, digit=int(digit), index=int(index)) | figures | trust)
    return sorted(rows, key=lambda row: (row["digit"], row["index"]))


def gap_table(entries: Sequence[Entry]) -> list[Row]:
    """Means over a split of log p(x), of the two ELBOs below it and of the gaps between them, in nats, with errors."""
    rows = []
    for entry in [entry for entry in entries if not entry.gaps.empty]:
        for _, part in entry.gaps.groupby(["split", "posterior"], sort=False):
            split, posterior = part[["split", "posterior"]].iloc[0]
            row = _row(entry, split=split, posterior=posterior, images=len(part))
            for column, metric in m.GAP_COLUMNS.items():
                found = entry.measures(m.STORED[metric] if posterior == TABLE else metric, split)
                row[column], row[f"{column}_se"] = found.values()
            rows.append(row)
    return rows


def representation_table(entries: Sequence[Entry]) -> list[Row]:
    """Active units, and rate, distortion and aggregate KL in nats, a row a run and split."""
    rows = []
    for entry in entries:
        for split in [split for split in SPLITS if entry.has(m.RATE, split)]:
            images, dim = len(entry.images(split)) or None, entry.run.params.get("latent_dim")
            row = _row(entry, split=split, images=images, latent_dim=dim)
            for metric in m.REPRESENTATION:
                row |= entry.measures(metric, split)
            rows.append(row)
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
            row = _row(entry, name, cnn_run=cnn)
            for metric in m.FIDELITY:
                found = entry.measures(m.REAL_IMAGES[metric] if name == REAL else metric, m.TEST)
                row |= dict(zip(metric.names, found.values(), strict=True))
            rows.append(row)
    return rows


def ood_table(entries: Sequence[Entry]) -> list[Row]:
    """AUROC of each score with its standard error, a row a run and other data set, and means in nats."""
    rows = []
    for entry in [entry for entry in entries if not entry.ood.empty]:
        own = entry.ood[entry.ood["dataset"] == ""]
        for name, other in entry.ood[entry.ood["dataset"] != ""].groupby("dataset", sort=False):
            row = _row(entry, ood=name, images=len(own), other_images=len(other))
            for score, metric in m.OOD_SCORES.items():
                key = metric.at(m.OOD, DATASET=name)
                row[f"auroc_{score}"] = entry.run.metrics.get(key, nan)
                row[f"auroc_{score}_se"] = entry.run.metrics.get(f"{key}_se", nan)
            for score in ("log_px", "regret"):
                row |= {score: float(np.mean(own[score])), f"other_{score}": float(np.mean(other[score]))}
            rows.append(row | {"unreliable_share": max(float(np.mean(part["unreliable"])) for part in (own, other))})
    return rows


def curves_table(curves: Curves, runs: Mapping[str, tuple[RunRecord, Entry]]) -> list[Row]:
    """Every training and validation value, a row a run, key and epoch, of which a closed form has none."""
    return [
        _row(entry) | {"run": run, "key": key, "epoch": None if entry.closed_form else epoch, "value": value}
        for run, (_, entry) in runs.items()
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
                row = {"runs": runs, "metric": metric, "seeds": len(values), "mean": mean, "half_width": half}
                rows.append(_row(entry) | row)
    return rows


def pairs_table(entries: Sequence[Entry]) -> list[Row]:
    """Mean difference in log p(x) of every two entries on the same images, in nats, with its interval."""
    return [
        _row(other, other=one.label, other_run=one.run.id, split=split, converged=both_converged(one, other), **found)
        for split in (m.TEST, m.TRAIN)
        for one, other in combinations([entry for entry in entries if entry.latent], 2)
        if (found := apart(other, one, split))
    ]


def ablations_table(entries: Sequence[Entry], variants: Sequence[Variant], curves: Curves) -> list[Row]:
    """Each entry that has variants, and after it the variants; validation ELBO and test log p(x) over their seeds."""
    rows = []
    for base in entries:
        if mine := [variant for variant in variants if variant.base is base]:
            rows.append({"model": base.label, "field": "", "value": "", "base": "", **_outcome(base, curves)})
        for variant in mine:
            value, was = (value_of(one, variant.field) for one in (variant.entry, base))
            row: Row = {"model": base.label, "field": variant.field, "value": value, "base": was}
            gap = apart(variant.entry, base, m.TEST)
            # Which counts the smaller number of seeds, where the row counts its own.
            gap.pop("seeds", None)
            rows.append(row | _outcome(variant.entry, curves) | gap)
    return rows


def _outcome(entry: Entry, curves: Curves) -> Row:
    """Return how the trainings of an entry went, means over its seeds in nats; a closed form has no epochs."""
    elbos = [elbo for run in entry.runs if (elbo := curves.get((run.id, m.ELBO.at(m.VAL))))]
    best = [max(elbo, key=lambda epoch: elbo[epoch]) for elbo in elbos]
    tests = [[run.metrics.get(f"{m.TEST}/{name}", nan) for name in m.LOG_PX.names] for run in entry.runs]
    # The errors of runs that were evaluated on the same images do not cancel.
    test, error = map(float, np.mean(tests, axis=0))
    return {
        "runs": " ".join(run.id for run in entry.runs),
        "seeds": len(entry.runs),
        "converged": entry.converged,
        "best_val_elbo": mean_se(elbo[epoch] for elbo, epoch in zip(elbos, best, strict=True))[0],
        "best_epochs": "" if entry.closed_form else " ".join(map(str, best)),
        "last_val_elbo": nan if entry.closed_form else mean_se(elbo[max(elbo)] for elbo in elbos)[0],
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
