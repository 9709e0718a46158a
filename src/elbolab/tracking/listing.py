"""The trainings of the current experiment as lines of text, newest first."""

import time
from collections.abc import Mapping, Sequence

from elbolab.evaluation.metrics import ACCURACY, ELBO, LOG_PX
from elbolab.support.paths import public
from elbolab.tracking.keys import BEST_EPOCH, CONVERGED, FAILED, FINISHED, KILLED, RUNNING
from elbolab.tracking.meant_runs import brief
from elbolab.tracking.mlflow_reader import RunRecord, find_runs, is_latent, values_of
from elbolab.tracking.offline import free_trainings

UNITS = (("d", 86_400), ("h", 3600), ("min", 60))
HEADER = ("run", "model", "data", "state", "validation", "test", "age", "not at its default")
# What has a column of its own, or tells no run from another.
LEFT_OUT = ("model", "dataset", "data_dir")
LONGEST = 24
# The server has it as RUNNING: a process that is killed cannot say so.
STOPPED = "stopped"


def list_trainings(defaults: Mapping[str, Mapping[str, str]], limit: int) -> list[str]:
    """A header and a line for each of the newest ``limit`` trainings, whatever their state; says where there are more.

    Those that the working folder has unfinished, without a process, are said to be stopped.

    ``defaults`` are parameters by model: a line shows those that are others. On validation images it has the ELBO of
    the model, that is of the best epoch, on test images log p(x) with its standard error; of a classifier the accuracy.
    """
    runs = find_runs(limit=limit + 1, status=None)
    best = _best(runs[:limit])
    here = {run_id for run_id, _ in free_trainings({})}.intersection(run.id for run in runs)
    stopped = {run.id for run in runs if run.id in here and run.status == RUNNING}
    rows = [
        _row(run, run.id in stopped, best.get(run.id), defaults.get(run.params.get("model", "")))
        for run in runs[:limit]
    ]
    end = [f"`elbolab resume RUN` resumes what is {STOPPED}, {KILLED} or {FAILED} here"] if here else []
    end += [f"older ones are not shown; `elbolab runs --limit {10 * limit}` shows more"] if len(runs) > limit else []
    return [*_aligned([HEADER, *rows]), *end] if rows else []


def age(start: int) -> str:
    """How long ago something began, ``start`` in milliseconds since 1970."""
    seconds = max(0, time.time() - start / 1000)
    return next((f"{seconds / size:.0f} {unit}" for unit, size in UNITS if seconds >= size), f"{seconds:.0f} s")


def _best(runs: Sequence[RunRecord]) -> dict[str, float]:
    """The validation score of each run's model, by id; of one that is not finished its newest."""
    found: dict[str, float] = {}
    for metric in (ELBO, ACCURACY):
        key = metric.at("val")
        own = {run.id: run for run in runs if key in run.metrics and is_latent(run) == (metric is ELBO)}
        found |= {run_id: run.metrics[key] for run_id, run in own.items()}
        for run_id, step, value in values_of(list(own), key) if own else ():
            if own[run_id].tags.get(BEST_EPOCH) == str(step):
                found[run_id] = value
    return found


def _row(
    run: RunRecord, stopped: bool, validation: float | None, defaults: Mapping[str, str] | None
) -> tuple[str, ...]:
    model = run.params.get("model", "unknown")
    params = {key: value for key, value in run.params.items() if key not in LEFT_OUT}
    name, *named = run.name.split(" ")
    if defaults is None:
        # Of a model of the user's own its name alone says what is not at its default.
        changes = [*([f"code={params['code']}"] if "code" in params else []), *(named if name == model else [])]
    else:
        changes = [f"{key}={brief(value)}" for key, value in params.items() if value != defaults.get(key)]
    named = [] if name == model else [f"({run.name})"]
    data = public(run.tags.get("data.name", "unknown"))
    data = data if len(data) <= LONGEST else f"{data[: LONGEST - 1]}…"
    test = _test(run)
    score = "" if validation is None else f"ELBO {validation:.2f}" if is_latent(run) else f"accuracy {validation:.3f}"
    return (
        run.id[:8],
        model,
        data,
        STOPPED if stopped else _state(run),
        score,
        test,
        age(run.start),
        " ".join([*named, *changes]),
    )


def _state(run: RunRecord) -> str:
    if run.status != FINISHED:
        return run.status
    known = {"true": "converged", "false": "not converged"}
    return known.get(run.tags.get(CONVERGED, ""), "finished")


def _test(run: RunRecord) -> str:
    if not is_latent(run):
        value = run.metrics.get(ACCURACY.at("test"))
        return "" if value is None else f"accuracy {value:.3f}"
    if (value := run.metrics.get(LOG_PX.at("test"))) is None:
        return ""
    error = run.metrics.get(f"{LOG_PX.at('test')}_se")
    return f"log p(x) {value:.2f}" + (f" ± {error:.2f}" if error else "")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The last column may be long.
    widths[-1] = 0
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
