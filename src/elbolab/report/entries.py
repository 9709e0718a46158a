"""What a report is made from: the compared runs, and what their training and evaluation left on the server."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elbolab import tracker
from elbolab.tracker import RunRecord

SPLITS = {"train": "training", "val": "validation", "test": "test"}
PICTURES = ("reconstructions_train", "reconstructions_val", "samples")

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
class Finding:
    """One sentence computed from the numbers, with the ids of the runs that they came from."""

    text: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All that a report shows; `starts` are the runs of each initialisation of latent optimisation."""

    entries: list[Entry]
    missing: list[str]
    starts: list[RunRecord]
    curves: Curves
    tables: dict[str, list[Row]]
    findings: dict[str, list[Finding]]

    @property
    def latents(self) -> list[Entry]:
        """The entries that are densities of images."""
        return [entry for entry in self.entries if entry.latent]

    @property
    def slots(self) -> dict[str, int]:
        """The colour slot of every run on the page, by id."""
        first = 1 + max([4, *(entry.slot for entry in self.entries)])
        starts = {run.id: first + place for place, run in enumerate(self.starts)}
        return starts | {entry.run.id: entry.slot for entry in self.entries}

    def of(self, *models: str) -> list[Entry]:
        """Return the entries of some models, in the report's order."""
        return [entry for entry in self.entries if entry.model in models]

    def summary(self, entry: Entry, split: str) -> Row:
        """Return a run's row of the summary for its declared posterior, empty where there is none."""
        rows = (row for row in self.tables["summary"] if (row["run"], row["split"]) == (entry.run.id, split))
        return next((row for row in rows if row.get("posterior") not in ("table", "none")), {})


def is_latent(run: RunRecord) -> bool:
    """Whether a run's model is a density of images rather than a classifier."""
    return run.tags.get("observation_model") != "categorical"


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


def differences(run: RunRecord, base: RunRecord) -> dict[str, str]:
    """Return the parameters of a run, its initialisation apart, that another does not share."""
    keys = sorted((set(run.params) | set(base.params)) - {"latent_init"})
    return {key: run.params.get(key, "unset") for key in keys if run.params.get(key) != base.params.get(key)}


def public(value: str) -> str:
    """Cut the folders off an absolute path: a report is read on other machines."""
    kind, colon, path = value.rpartition(":") if value.startswith("npz:") else ("", "", value)
    return kind + colon + Path(path).name if Path(path).is_absolute() else value
