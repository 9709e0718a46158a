"""Fetching what training and evaluation left of the runs of a report; a run whose files are lost can be left out."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from elbolab.evaluation.metrics import ACCURACY, CLASS_PRESERVATION, INFERENCE_GAP, REGRET, TEST
from elbolab.report.collect import Curves, Entry
from elbolab.report.select import Group
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import EVALUATION_PROTOCOL, HALF_SENT
from elbolab.tracking.mlflow_reader import RunRecord, is_evaluated, is_latent

LIKELIHOOD, POPULATION, CLASSES, GAP = "likelihood.parquet", "population.parquet", "classes.json", "gap.parquet"
OOD = "ood.parquet"
PICTURES = ("reconstructions_train", "reconstructions_val", "samples")
PICTURES_OF_VARIANTS = PICTURES[1:]

T = TypeVar("T")
Lost = dict[str, str]
"""The runs that are left out: their models by id."""


def load(runs: Group, label: str, slot: int, lost: Lost | None = None, variant: bool = False) -> Entry | None:
    """Fetch what the evaluations and the shown run's training left, of a variant only what its page shows.

    Runs whose files are lost are added to ``lost`` and left out, each with a line on standard error; None where none
    is left. Without ``lost`` they raise LostError. Raises UserError where the server does not answer.
    """
    kept: list[tuple[RunRecord, pd.DataFrame, pd.DataFrame | None]] = []
    shown: dict[str, Any] = {}
    for run in runs:
        try:
            run = _without_half_sent(run)
            files = artifacts.list_artifacts(run.id, "evaluation") if is_evaluated(run) else ()
            have = {Path(path).name for path in files}
            table, population = likelihood(run, have), _read(run, POPULATION, pd.read_parquet, have)
            if not kept:
                shown = _shown_of_variant(run) if variant else _shown(run, have)
            kept.append((run, table, population))
        except artifacts.LostError as error:
            if lost is None:
                raise
            lost[run.id] = run.params["model"]
            print(f"elbolab: left out of the report: {error}", file=sys.stderr, flush=True)
    if not kept:
        return None
    those, tables, found = zip(*kept, strict=True)
    populations = tuple(one for one in found if one is not None)
    return Entry(label, slot, those, tables, populations if len(populations) == len(found) else (), **shown)


def _without_half_sent(run: RunRecord) -> RunRecord:
    """The run without the figures of an evaluation whose place another one has begun to take."""
    if run.tags.get(EVALUATION_PROTOCOL) != HALF_SENT:
        return run
    stale = mlflow_reader.evaluated_metrics(run.id)
    return replace(run, metrics={key: value for key, value in run.metrics.items() if key not in stale})


def likelihood(run: RunRecord, have: set[str]) -> pd.DataFrame:
    """Fetch a run's log p(x) image by image, an empty table where it was not evaluated.

    ``have`` are the files of its evaluation; raises LostError where it has none, though it was evaluated.
    """
    needed = LIKELIHOOD if is_latent(run) else CLASSES
    if is_evaluated(run) and needed not in have:
        raise artifacts.LostError(
            f"run {run.id} ({run.params['model']}) was evaluated, but evaluation/{needed} is not there any more; bring "
            f"it back, or evaluate the run again by `elbolab evaluate {run.id}`"
        )
    found = _read(run, LIKELIHOOD, pd.read_parquet, have) if is_latent(run) and is_evaluated(run) else None
    return pd.DataFrame() if found is None else found


def _shown(run: RunRecord, have: set[str]) -> dict[str, Any]:
    # An evaluation takes back no file of an earlier one, but every figure that it did not measure itself.
    figure = {
        GAP: INFERENCE_GAP.at(TEST),
        OOD: REGRET.at(TEST),
        CLASSES: (CLASS_PRESERVATION if is_latent(run) else ACCURACY).at(TEST),
    }
    have = {name for name in have if name not in figure or figure[name] in run.metrics}
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "classes": (CLASSES, lambda file: dict(json.loads(file.read_bytes()))),
        "examples": ("examples.npz", lambda file: dict(np.load(file, allow_pickle=False))),
        "bounds": ("curve.parquet", pd.read_parquet),
        "gaps": (GAP, pd.read_parquet),
        "ood": (OOD, pd.read_parquet),
    }
    found = {field: _read(run, name, reader, have) for field, (name, reader) in readers.items()}
    pictures = {key: artifacts.step_images(run.id, key) for key in PICTURES} if is_latent(run) else {}
    return {"pictures": pictures} | {field: value for field, value in found.items() if value is not None}


def _shown_of_variant(run: RunRecord) -> dict[str, Any]:
    return {"pictures": {key: artifacts.step_images(run.id, key) for key in PICTURES_OF_VARIANTS}}


def _read(run: RunRecord, name: str, reader: Callable[[Path], T], have: set[str]) -> T | None:
    return artifacts.read(run.id, f"evaluation/{name}", reader) if name in have else None


def read_curves(runs: Iterable[str]) -> Curves:
    """Return every training and validation value of the runs: by run and key, then by epoch."""
    curves: Curves = {}
    history = mlflow_reader.history(list(dict.fromkeys(runs)))
    columns = (history[name].tolist() for name in ("run", "key", "step", "value"))
    for run, key, step, value in sorted(zip(*columns, strict=True)):
        # Evaluation writes train/* and val/* figures of its own at step 0; a training's epochs begin at 1.
        if step >= 1:
            curves.setdefault((run, key), {})[step] = value
    return curves
