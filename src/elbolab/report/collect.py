"""What a report is made from: the compared runs as entries, and what training and evaluation left of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from elbolab.evaluation.metrics import (
    BIAS,
    ELBO,
    IW_BOUND,
    LOG_PX,
    LR,
    TRAIN,
    VAL,
    Metric,
    is_doubtful,
)
from elbolab.evaluation.split_means import noise_of
from elbolab.report.select import EXACT, inference_of
from elbolab.support.paths import public
from elbolab.support.statistics import accuracy, is_heavy_tailed
from elbolab.tracking.keys import ADOPTED, CLASS_NAMES, CONVERGED
from elbolab.tracking.mlflow_reader import RunRecord, is_evaluated, is_latent

SPLITS = {"train": "training", "val": "validation", "test": "test"}
TABLE = "table"
"""The name of the posteriors that training left for its own images."""

Row = dict[str, Any]
Curves = dict[tuple[str, str], dict[int, float]]


@dataclass(frozen=True)
class Entry:
    """A compared config: its runs, one a seed, with what training and evaluation left; empty where nothing was left.

    The first run, the newest, is the one that is shown; `likelihoods` has a table for each, and `populations` what is
    known of every image of each split, where all of them have it. `slot` is the colour;
    `pictures` holds the step images by key and epoch, `bounds` the mean bound by number of samples, `gaps` the
    inference gap image by image, `ood` the scores of test images and of other data, whose `dataset` these name.
    """

    label: str
    slot: int
    runs: tuple[RunRecord, ...]
    likelihoods: tuple[pd.DataFrame, ...]
    populations: tuple[pd.DataFrame, ...] = ()
    classes: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, dict[int, bytes]] = field(default_factory=dict)
    bounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    gaps: pd.DataFrame = field(default_factory=pd.DataFrame)
    ood: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def run(self) -> RunRecord:
        """The run that is shown."""
        return self.runs[0]

    @property
    def model(self) -> str:
        """Name of the run's model."""
        return self.run.params["model"]

    @property
    def latent(self) -> bool:
        """Whether the run has a density of images."""
        return is_latent(self.run)

    @property
    def closed_form(self) -> bool:
        """Whether the run took no steps, which have a rate: of its one pass over the data no epoch is to be told."""
        return LR.at(TRAIN) not in self.run.metrics and not self.origin

    @property
    def origin(self) -> str:
        """What a model that was trained elsewhere was adopted from; empty for the others."""
        return self.run.tags.get(ADOPTED, "")

    @property
    def evaluated(self) -> bool:
        """Whether an evaluation has left its figures on the run."""
        return is_evaluated(self.run)

    @property
    def converged(self) -> bool | None:
        """Whether the validation score had stopped improving in all its trainings; None where one does not say it."""
        said = {run.tags.get(CONVERGED, "true" if self.closed_form else None) for run in self.runs}
        return False if "false" in said else None if None in said else True

    @property
    def inference(self) -> str:
        """Whence its posteriors come, one of ``select.INFERENCES``; empty where nothing has said it."""
        return inference_of(self.run)

    def metric(self, metric: Metric, split: str, **places: object) -> float:
        """A metric's last value, NaN where it was not logged; raises ValueError where it is not of that split."""
        return self.run.metrics.get(metric.at(split, **places), nan)

    def measures(self, metric: Metric, split: str, **places: object) -> Row:
        """A metric with its errors, by name; NaN as above, and raises the same."""
        metric.at(split, **places)
        names = {name: name.format(**places) for name in metric.names}
        return {name: self.run.metrics.get(f"{split}/{filled}", nan) for name, filled in names.items()}

    def has(self, metric: Metric, split: str) -> bool:
        """Whether the run has a metric; raises as above."""
        return metric.at(split) in self.run.metrics

    @property
    def samples(self) -> int:
        """Importance samples an image; equal for all the runs, 0 where none is evaluated."""
        return int(self.run.tags.get("evaluation.samples", "0"))

    def unreliable(self, split: str, metric: Metric = LOG_PX) -> bool:
        """Whether most images of a split have too high a Pareto k in any of the runs: false where there is no k."""
        return any(is_doubtful(run.metrics, metric.at(split)) for run in self.runs)

    def images(self, split: str, column: str = "log_px", posterior: str = "", seed: int = 0) -> dict[int, float]:
        """One value an image of a split, by index: of the declared posterior, or of another that was evaluated beside.

        The run is the one at ``seed``. Empty where the evaluation left no such column, or no such posterior.
        """
        frame = self.likelihoods[seed]
        if column not in frame:
            return {}
        rows = frame[(frame["split"] == split) & (frame["posterior"] == (posterior or self.inference))]
        return dict(zip(rows["index"].tolist(), rows[column].tolist(), strict=True))

    def doubts(self, split: str, posterior: str = "") -> dict[int, float]:
        """1 for an image whose estimate is unreliable, else 0, by index; an exact one is not there."""
        found = self.images(split, "unreliable", posterior)
        if found:
            rungs = self.images(split, "rung", posterior)
            return {index: value for index, value in found.items() if rungs[index] > 0}
        # An evaluation of 0.1.0 has left the k alone.
        known = {index: k for index, k in self.images(split, "pareto_k", posterior).items() if not isnan(k)}
        return {index: float(is_heavy_tailed(k, self.samples)) for index, k in known.items()}

    def population(self, split: str) -> pd.DataFrame:
        """What is known of every image of a split, by index, the mean over the seeds; empty where it was not left."""
        if not self.populations:
            return pd.DataFrame()
        whole = pd.concat(self.populations, ignore_index=True).query("split == @split")
        return pd.DataFrame({"elbo": whole.groupby("index")["elbo"].mean()})

    def constants(self, split: str, label: int) -> pd.Series:
        """What every image of a class would have if it were decoded to the mean image, by index, in nats; empty where
        it was not left.
        """
        whole = pd.concat(self.populations, ignore_index=True) if self.populations else pd.DataFrame()
        if "log_px_constant" not in whole:
            return pd.Series(dtype=float)
        own = whole[(whole["split"] == split) & (whole["label"] == label)]
        return pd.Series(own.groupby("index")["log_px_constant"].first())

    def noise(self, split: str) -> float:
        """The variance of an image's log p(x) about what it estimates, the mean over images, of the mean over seeds."""
        squares = [noise_of(self.images(split, "std_err", seed=seed).values()) for seed in range(len(self.runs))]
        return sum(squares) / len(squares) ** 2

    def means(self, split: str, column: str = "log_px", posterior: str = "") -> dict[int, float]:
        """A value of each image, such as its log p(x) in nats, its mean over the seeds, where all of them have it."""
        found = [self.images(split, column, posterior, seed) for seed in range(len(self.runs))]
        shared = [index for index in found[0] if all(index in one for one in found)]
        return {index: float(np.mean([one[index] for one in found])) for index in shared}

    @property
    def most_bias(self) -> float:
        """By how many nats its mean log p(x) is too low at most, two standard errors included; NaN if not measured."""
        if self.inference == EXACT:
            return 0.0
        pairs = [[run.metrics.get(f"simulated/{name}", nan) for name in BIAS.names] for run in self.runs]
        bias, errors = np.transpose(pairs)
        return float(np.maximum(0.0, bias.mean() + 2 * np.sqrt((errors**2).sum()) / len(pairs)))

    def agreement(self, split: str) -> tuple[float, float, int]:
        """The share of a split's confusion that is on its diagonal, its standard error, and the images counted."""
        found = self.classes.get("splits", {}).get(split)
        return accuracy(found["confusion"]) if found else (nan, nan, 0)


@dataclass(frozen=True)
class Variant:
    """Runs that differ from a compared entry in one parameter: the name of it, and the runs as an entry."""

    base: Entry
    field: str
    entry: Entry


@dataclass(frozen=True)
class Comparison:
    """All that a report shows of one dataset; `runs` holds every run on its page, with its entry, by id, and `lost` the
    models of those that are left out since their files are not there any more.
    """

    entries: list[Entry]
    variants: list[Variant]
    runs: dict[str, tuple[RunRecord, Entry]]
    curves: Curves
    tables: dict[str, list[Row]]
    lost: Mapping[str, str] = field(default_factory=dict)

    def tag(self, name: str) -> str:
        """A tag that the runs share, that of a density where there is one."""
        first = (self.latents or self.entries)[0].run
        return public(first.tags.get(name, ""))

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where it has none."""
        found = (entry.run.tags[CLASS_NAMES] for entry in self.entries if CLASS_NAMES in entry.run.tags)
        names = json.loads(next(found, "[]"))
        return str(names[label]) if label < len(names) else str(label)

    @property
    def latents(self) -> list[Entry]:
        """The entries that are densities of images."""
        return [entry for entry in self.entries if entry.latent]

    @property
    def classifiers(self) -> list[Entry]:
        """The entries that are not."""
        return [entry for entry in self.entries if not entry.latent]

    def score(self, entry: Entry) -> dict[int, float]:
        """What an entry's epochs are judged by, by epoch: the validation ELBO, or of a bound's own model its bound."""
        found = (self.curves.get((entry.run.id, metric.at(VAL))) for metric in (IW_BOUND, ELBO))
        return next((values for values in found if values), {})

    def best_epoch(self, entry: Entry) -> int:
        """The epoch whose weights are evaluated; 0 where nothing says it."""
        score = self.score(entry)
        # Runs of 0.1.0 do not say it; of equal ones the first is kept.
        return int(entry.run.tags.get("best_epoch", max(score, key=lambda epoch: score[epoch], default=0)))

    def last_epoch(self, entry: Entry) -> int:
        """The epoch with which the training ended; 0 where nothing says it."""
        return max(self.score(entry), default=0)

    def summary(self, entry: Entry, split: str, posterior: str = "") -> Row:
        """A run's row of the summary for its declared posterior, or for another; empty where there is none."""
        rows = (row for row in self.tables["summary"] if (row["model"], row["split"]) == (entry.label, split))
        return next((row for row in rows if row.get("posterior", "") == (posterior or entry.inference)), {})

    def by_split(self, metric: Metric) -> dict[tuple[str, str, str], dict[str, Row]]:
        """The rows of the summary that have a metric, by model, run and posterior, then by split."""
        groups: dict[tuple[str, str, str], dict[str, Row]] = {}
        for row in self.tables["summary"]:
            if metric.name in row:
                groups.setdefault((row["model"], row["run"], row["posterior"]), {})[row["split"]] = row
        return groups


def value_of(entry: Entry, field: str) -> str:
    """What a parameter is in an entry's runs."""
    return public(entry.run.params.get(field, "unset"))
