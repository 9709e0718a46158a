"""The trainings of the current experiment as lines of text, newest first."""

import time
from collections.abc import Mapping, Sequence

from elbolab.evaluation.metrics import ACCURACY, ELBO, LOG_PX
from elbolab.tracking.keys import CONVERGED
from elbolab.tracking.mlflow_reader import RunRecord, find_runs, is_latent

UNITS = (("d", 86_400), ("h", 3600), ("min", 60))
HEADER = ("run", "model", "data", "state", "validation ELBO", "test log p(x)", "age", "not at its default")
# Where a training's data are tells no run from another.
LEFT_OUT = ("model", "data_dir")


def list_trainings(defaults: Mapping[str, Mapping[str, str]], limit: int) -> list[str]:
    """A header and a line for each of the newest ``limit`` trainings, whatever their state; says where there are more.

    ``defaults`` are parameters by model: a line shows those that are others. The validation ELBO is that of the last
    epoch, test log p(x) has its standard error; of a classifier both are the accuracy.
    """
    runs = find_runs(limit=limit + 1, status=None)
    rows = [_row(run, defaults.get(run.params.get("model", ""), {})) for run in runs[:limit]]
    more = [f"older ones are not shown; `elbolab runs --limit {10 * limit}` shows more"] if len(runs) > limit else []
    return [*_aligned([HEADER, *rows]), *more] if rows else []


def _row(run: RunRecord, defaults: Mapping[str, str]) -> tuple[str, ...]:
    model = run.params.get("model", "unknown")
    params = {key: value for key, value in run.params.items() if key not in LEFT_OUT}
    changes = [f"{key}={value}" for key, value in params.items() if value != defaults.get(key)]
    named = [] if run.name.split(" ")[0] == model else [f"({run.name})"]
    data = run.tags.get("data.name", "unknown")
    return run.id[:8], model, data, _state(run), *_scores(run), age(run.start), " ".join([*named, *changes])


def _state(run: RunRecord) -> str:
    if run.status != "FINISHED":
        return run.status
    known = {"true": "converged", "false": "not converged"}
    return known.get(run.tags.get(CONVERGED, ""), "finished")


def _scores(run: RunRecord) -> tuple[str, str]:
    score, result = (ELBO, LOG_PX) if is_latent(run) else (ACCURACY, ACCURACY)
    found = [run.metrics.get(score.at("val")), run.metrics.get(result.at("test"))]
    form = "{:.2f}" if is_latent(run) else "accuracy {:.3f}"
    validation, test = ("" if value is None else form.format(value) for value in found)
    error = run.metrics.get(f"{result.at('test')}_se") if is_latent(run) else None
    return validation, f"{test} ± {error:.2f}" if test and error else test


def age(start: int) -> str:
    seconds = max(0, time.time() - start / 1000)
    return next((f"{seconds / size:.0f} {unit}" for unit, size in UNITS if seconds >= size), f"{seconds:.0f} s")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The last column may be long.
    widths[-1] = 0
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
