"""Choose finished runs of the tracking server, make their tables and findings, and write the comparison report."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import hypot, isnan, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elbolab import tracker
from elbolab.config import CompareConfig
from elbolab.errors import UserError
from elbolab.report import Finding, number, percent
from elbolab.tracker import RunRecord

ROLES = ("cnn", "vae", "latent_opt", "ppca")
SPLITS = {"train": "training", "val": "validation", "test": "test"}
PICTURES = ("reconstructions_train", "reconstructions_val", "samples")
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

Row = dict[str, Any]
Curves = dict[tuple[str, str], dict[int, float]]


@dataclass(frozen=True)
class Entry:
    """One compared run with what its training and evaluation left on the server; empty where nothing was left.

    `slot` is its colour; `pictures` holds the step images by key and epoch.
    """

    label: str
    slot: int
    run: RunRecord
    likelihood: pd.DataFrame
    classes: dict[str, Any]
    examples: dict[str, np.ndarray]
    pictures: dict[str, dict[int, Path]]

    @property
    def model(self) -> str:
        """Name of the run's model."""
        return self.run.params["model"]

    @property
    def latent(self) -> bool:
        """Whether the run has a density of images."""
        return is_latent(self.run)

    @property
    def evaluated(self) -> bool:
        """Whether an evaluation has left its figures on the run."""
        return ("test/log_px" if self.latent else "test/accuracy") in self.run.metrics

    def metric(self, key: str) -> float:
        """Return a metric's last value, NaN where it was not logged."""
        return self.run.metrics.get(key, nan)

    def images(self, split: str, column: str = "log_px", table: bool = False) -> dict[int, float]:
        """Return one value an image of a split, by index: of the declared posterior, or of the training table."""
        if self.likelihood.empty:
            return {}
        frame = self.likelihood
        rows = frame[(frame["split"] == split) & ((frame["posterior"] == "table") == table)]
        return dict(zip(rows["index"].tolist(), rows[column].tolist(), strict=True))

    def agreement(self, split: str) -> tuple[float, int]:
        """Return the share of a split's confusion that is on its diagonal, and the images counted."""
        if not (found := self.classes.get("splits", {}).get(split)):
            return nan, 0
        return float(np.trace(np.asarray(found["confusion"])) / found["n"]), found["n"]


@dataclass(frozen=True)
class Comparison:
    """All that a report shows; `starts` are the runs of each initialisation of latent optimisation."""

    entries: list[Entry]
    missing: list[str]
    starts: list[RunRecord]
    curves: Curves
    tables: dict[str, list[Row]]
    findings: dict[str, list[Finding]]


def compare(config: CompareConfig) -> Path:
    """Write the report of the chosen runs to `config.out`, log it on a comparison run and return its page.

    Raises UserError when there is nothing to compare, or when the runs named are unknown, unfinished, no train runs,
    or of different data or observation models.
    """
    runs = named_runs(config.run) if config.run else latest_runs(config.dataset)
    comparison = build(runs, tracker.find_runs("train"))
    # matplotlib is loaded only when there is a report to draw.
    from elbolab.report import page

    files = {f"{name}.csv": csv(name, rows) for name, rows in comparison.tables.items()}
    files |= page.render(comparison)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (config.out / name).write_text(text, encoding="utf-8", newline="\n")
    first = comparison.entries[0].run
    tags = {key: first.tags[key] for key in ("data.name", "data.digest") if key in first.tags}
    tags |= {f"compare.{entry.label}": entry.run.id for entry in comparison.entries}
    params = {"run": ",".join(config.run), "dataset": config.dataset or ""}
    with tracker.run("compare", "compare", params, tags) as run:
        for name in sorted(files):
            run.log_artifact(config.out / name, "report")
    return config.out / "index.html"


def csv(name: str, rows: list[Row]) -> str:
    """Write a table as CSV, counts as whole numbers."""
    frame = pd.DataFrame(rows, columns=COLUMNS[name].split())
    counts = [column for column in ("images", "epochs", "best_epoch") if column in frame]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False)


def is_latent(run: RunRecord) -> bool:
    """Whether a run's model is a density of images rather than a classifier."""
    return run.tags.get("observation_model") != "categorical"


def named_runs(ids: Sequence[str]) -> list[RunRecord]:
    """Return the finished train runs of these ids, refused together unless they share data and observation model."""
    runs = [tracker.get_run(run_id) for run_id in dict.fromkeys(ids)]
    for run in runs:
        if (kind := run.tags.get("elbolab.kind")) != "train":
            raise UserError(f"run {run.id} is no train run (elbolab.kind is {kind}): name runs of a model's training")
        if run.status != "FINISHED":
            raise UserError(f"run {run.id} is {run.status}: only FINISHED runs are compared")
    refuse_mixed(runs, "data.digest", "data")
    refuse_mixed([run for run in runs if is_latent(run)], "observation_model", "observation models")
    return sorted(runs, key=lambda run: (_rank(run.params["model"]), run.params["model"], run.start, run.id))


def refuse_mixed(runs: Sequence[RunRecord], tag: str, what: str) -> None:
    """Raise UserError naming both runs and both values when a tag differs from the first run's."""
    for run in runs[1:]:
        one, other = runs[0].tags.get(tag), run.tags.get(tag)
        if one != other:
            raise UserError(
                f"runs of different {what} cannot be compared: {tag} is `{one}` in run {runs[0].id} "
                f"and `{other}` in run {run.id}"
            )


def latest_runs(dataset: str | None) -> list[RunRecord]:
    """Return the latest finished run of each model that shares data and observation model with the latest of all."""
    found = tracker.find_runs("train")
    pool = [run for run in found if dataset in (None, run.tags.get("data.name"), run.params.get("dataset"))]
    if not pool:
        have = sorted({run.tags.get("data.name", "") for run in found})
        of = f" on dataset {dataset} (there are runs on {', '.join(have)})" if dataset and have else ""
        raise UserError(f"no finished train run{of} in this experiment: train one first, e.g. `elbolab vae`")
    anchor = next((run for run in pool if is_latent(run)), pool[0])
    first: dict[str, RunRecord] = {}
    for run in pool:
        if _same_task(run, anchor):
            first.setdefault(run.params["model"], run)
    return [first[name] for name in sorted(first, key=lambda name: (_rank(name), name))]


def _same_task(run: RunRecord, anchor: RunRecord) -> bool:
    """Whether two runs saw the same data and, both being densities, the same observation model."""
    tags = ["data.digest"] + (["observation_model"] if is_latent(run) and is_latent(anchor) else [])
    return all(run.tags.get(tag) == anchor.tags.get(tag) for tag in tags)


def _rank(model: str) -> int:
    """Place of a model in the report."""
    return ROLES.index(model) if model in ROLES else len(ROLES)


def build(runs: Sequence[RunRecord], pool: Sequence[RunRecord]) -> Comparison:
    """Gather the runs' evaluations and make tables and findings; `pool` is searched for other initialisations."""
    names, ids = [run.params["model"] for run in runs], {run.id for run in runs}
    spare = iter(range(len(ROLES) + 1, 99))
    entries = []
    for run, name in zip(runs, names, strict=True):
        taken = name not in ROLES or any(entry.model == name for entry in entries)
        label = name if names.count(name) == 1 else f"{name} {run.id[:8]}"
        entries.append(load(run, label, next(spare) if taken else _rank(name)))
    starts = initialisations(entries, pool)
    used = {run.id: run for run in [*runs, *starts]}
    labels = {run.id: f"{run.params['model']} {run.params['latent_init']}" for run in starts}
    labels = {entry.run.id: entry.label for entry in entries} | {k: v for k, v in labels.items() if k not in ids}
    curves = read_curves(used)
    tables = {
        "summary": summary_table(entries),
        "digits": digits_table(entries),
        "images": images_table(entries),
        "curves": curves_table(curves, labels),
        "initialisation": starts_table(starts, curves),
        "runs": runs_table(used.values()),
    }
    missing = [name for name in ROLES if name not in names]
    return Comparison(entries, missing, starts, curves, tables, find(entries, tables, curves))


def load(run: RunRecord, label: str, slot: int) -> Entry:
    """Fetch a run's evaluation files and step images, empty where they are absent."""
    have = set(tracker.list_artifacts(run.id, "evaluation"))

    def path(name: str) -> Path | None:
        return tracker.fetch(run.id, f"evaluation/{name}") if f"evaluation/{name}" in have else None

    likelihood, classes, examples = path("likelihood.parquet"), path("classes.json"), path("examples.npz")
    return Entry(
        label,
        slot,
        run,
        pd.read_parquet(likelihood) if likelihood else pd.DataFrame(),
        json.loads(classes.read_text()) if classes else {},
        dict(np.load(examples)) if examples else {},
        {key: tracker.step_images(run.id, key) for key in PICTURES} if is_latent(run) else {},
    )


def differences(run: RunRecord, base: RunRecord) -> dict[str, str]:
    """Return the parameters of a run, its initialisation apart, that another does not share."""
    keys = sorted((set(run.params) | set(base.params)) - {"latent_init"})
    return {key: run.params.get(key, "unset") for key in keys if run.params.get(key) != base.params.get(key)}


def initialisations(entries: Sequence[Entry], pool: Iterable[RunRecord]) -> list[RunRecord]:
    """Return a run for each `latent_init`: the one nearest in configuration to the compared one, then the latest."""
    base = next((entry.run for entry in entries if "latent_init" in entry.run.params), None)
    if base is None:
        return []
    best: dict[str, RunRecord] = {}
    same = (run for run in pool if run.params.get("model") == base.params["model"] and _same_task(run, base))
    for run in sorted(same, key=lambda run: (len(differences(run, base)), -run.start, run.id)):
        best.setdefault(run.params["latent_init"], run)
    best[base.params["latent_init"]] = base
    return [best[name] for name in sorted(best)]


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


def read_curves(runs: Iterable[str]) -> Curves:
    """Return every training and validation value of the runs: by run and key, then by epoch."""
    curves: Curves = {}
    history = tracker.history(list(dict.fromkeys(runs)))
    columns = (history[name].tolist() for name in ("run", "key", "step", "value"))
    for run, key, step, value in sorted(zip(*columns, strict=True)):
        # Evaluation writes train/* and val/* figures of its own at step 0; a training's epochs begin at 1.
        if step >= 1:
            curves.setdefault((run, key), {})[step] = value
    return curves


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
        params = "; ".join(f"{key}={public(value)}" for key, value in sorted(run.params.items()))
        row: Row = {"run": run.id, "name": run.name, "model": run.params["model"], "started": started}
        rows.append(row | {tag: public(run.tags.get(tag, "")) for tag in tags} | {"params": params})
    return rows


def public(value: str) -> str:
    """Cut the folders off an absolute path: a report is read on other machines."""
    kind, colon, path = value.rpartition(":") if value.startswith("npz:") else ("", "", value)
    return kind + colon + Path(path).name if Path(path).is_absolute() else value


def find(entries: Sequence[Entry], tables: dict[str, list[Row]], curves: Curves) -> dict[str, list[Finding]]:
    """Return the report's sentences by topic: each is there only where its numbers are."""
    latent = [entry for entry in entries if entry.latent]
    summary = [paired_finding(latent[0], other, split) for other in latent[1:] for split in ("test", "train")]
    found = {
        "summary": [*summary, protocol_finding([entry for entry in latent if entry.evaluated])],
        "classifier": [confusion_finding(entry) for entry in entries if not entry.latent],
        "curves": [best_finding(entry, curves.get((entry.run.id, "val/elbo"), {})) for entry in latent],
        "classes": [finding for entry in latent for finding in (kept_finding(entry), *ten_findings(entry))],
        "digits": [extremes_finding(entry, tables["digits"]) for entry in latent],
        "means": [finding for entry in latent for finding in (train_test_finding(entry), table_finding(entry))],
    }
    return {topic: [finding for finding in group if finding] for topic, group in found.items()}


def apart(gap: float, error: float) -> str:
    """Write a signed difference in nats as a distance, and say when it is within two standard errors."""
    side = "above" if gap > 0 else "below"
    return f"{abs(gap):.2f} ± {error:.2f} nats {side}" + ("" if abs(gap) > 2 * error else " (within two errors)")


def paired(values: dict[int, float], others: dict[int, float]) -> tuple[int, float, float]:
    """Number of images that two estimates share, mean difference in nats, and its standard error."""
    gaps = [values[index] - others[index] for index in sorted(values.keys() & others.keys())]
    return (len(gaps), *mean_se(gaps))


def paired_finding(one: Entry, other: Entry, split: str) -> Finding | None:
    """Say how far apart two runs are on the images that both were evaluated on."""
    n, gap, error = paired(other.images(split), one.images(split))
    text = f"On the same {n} {SPLITS[split]} images {other.label} is {apart(gap, error)} {one.label}."
    return Finding(text, (other.run.id, one.run.id)) if n > 1 else None


def protocol_finding(entries: Sequence[Entry]) -> Finding | None:
    """Warn when runs were not evaluated alike."""
    names = ("samples", "images", "seed", "cnn_run")
    kept = {name: {entry.run.tags.get(f"evaluation.{name}", "none") for entry in entries} for name in names}
    unlike = [f"{name} {' and '.join(sorted(values))}" for name, values in kept.items() if len(values) > 1]
    text = f"These runs were evaluated differently: {'; '.join(unlike)}."
    return Finding(text, tuple(entry.run.id for entry in entries)) if unlike else None


def train_test_finding(entry: Entry) -> Finding | None:
    """Say how much higher a run's log p(x) is on training images than on test images."""
    gap = entry.metric("train/log_px") - entry.metric("test/log_px")
    error = hypot(entry.metric("train/log_px_se"), entry.metric("test/log_px_se"))
    text = f"{entry.label}: training images lie {apart(gap, error)} test images on average."
    return None if isnan(gap + error) else Finding(text, (entry.run.id,))


def table_finding(entry: Entry) -> Finding | None:
    """Say how the training table's own rows compare with rows fitted to the same images by the protocol."""
    n, gap, error = paired(entry.images("train", table=True), entry.images("train"))
    text = f"{entry.label}: on the same {n} training images the training table's own rows give log p(x) "
    return Finding(f"{text}{apart(gap, error)} rows fitted by the protocol.", (entry.run.id,)) if n > 1 else None


def extremes_finding(entry: Entry, digits: Sequence[Row]) -> Finding | None:
    """Name the classes with the highest and the lowest mean log p(x) on test images."""
    means = {row["log_px"]: row["digit"] for row in digits if (row["run"], row["split"]) == (entry.run.id, "test")}
    if len(means) < 2:
        return None
    high, low = max(means), min(means)
    text = f"{entry.label}: highest mean for class {means[high]} ({number(high)} nats), lowest for class {means[low]}"
    return Finding(f"{text} ({number(low)}).", (entry.run.id,))


def kept_finding(entry: Entry) -> Finding | None:
    """Say how often the classifier gives a test image and its reconstruction the same class."""
    kept, n = entry.metric("test/class_preservation"), entry.agreement("test")[1]
    rate = percent(kept, binomial_se(kept, n))
    text = f"{entry.label}: {rate} of {n} test reconstructions keep the class that the classifier gives the original."
    return Finding(text, (entry.run.id, entry.classes["cnn_run"])) if n else None


def ten_findings(entry: Entry) -> list[Finding]:
    """Say which of the fixed digits changed class."""
    out = []
    for split, rows in entry.classes.get("ten", {}).items():
        pairs = [(row["original"], row["reconstruction"]) for row in rows]
        moved = [f"{before} → {after}" for before, after in pairs if before != after]
        which = f" ({', '.join(moved)})" if moved else ""
        text = f"{entry.label}: {len(moved)} of the {len(rows)} fixed {SPLITS[split]} digits changed class{which}."
        out.append(Finding(text, (entry.run.id,)))
    return out


def confusion_finding(entry: Entry) -> Finding | None:
    """Name the classifier's most frequent mistake on test images."""
    if not (found := entry.classes.get("splits", {}).get("test")):
        return None
    counts = np.array(found["confusion"])
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    often = f", most often {row} as {column} ({counts.max()} of them)" if counts.any() else ""
    return Finding(f"{entry.label} misreads {counts.sum()} of {found['n']} test images{often}.", (entry.run.id,))


def best_finding(entry: Entry, elbo: dict[int, float]) -> Finding | None:
    """Say at which epoch the validation ELBO was best and where it ended."""
    if len(elbo) < 2:
        return None
    last, best = max(elbo), max(elbo, key=lambda epoch: elbo[epoch])
    end = "" if best == last else f"; {number(elbo[last])} at the last"
    text = f"{entry.label}: validation ELBO is highest at epoch {best} of {last} ({number(elbo[best])} nats{end})."
    return Finding(text, (entry.run.id,))
