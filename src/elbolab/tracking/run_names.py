"""The run on the server that is meant by what somebody types."""

from collections.abc import Iterable

import mlflow
from mlflow.entities import Run, ViewType

from elbolab.support.errors import UserError
from elbolab.tracking.keys import FINISHED, KIND, RUNNING
from elbolab.tracking.meant_runs import BEGINNING, ID, LATEST, LISTED, Named, one_of
from elbolab.tracking.mlflow_reader import (
    RunRecord,
    address,
    all_pages,
    current_experiment,
    find_runs,
    get_run,
    prepare_store,
    quoted,
)


def find_run(asked: str) -> RunRecord:
    """The run that is meant: ids are looked for everywhere, names and `latest` in the current experiment.

    `latest` is the newest finished training, `latest:MODEL` that of a model. Raises UserError where there is none or it
    is deleted, or where several are meant.
    """
    if ID.fullmatch(asked):
        return get_run(asked)
    prepare_store()
    if (latest := LATEST.fullmatch(asked)) is not None:
        model = latest[1]
        found = find_runs(params={"model": model} if model else {}, limit=1)
        if not found:
            of = f" of {model}" if model else ""
            others = ", ".join(sorted({run.params["model"] for run in find_runs()})) if model else ""
            there = f"; there are of: {others}" if others else "; train one"
            raise UserError(f"there is no finished training{of} on {address()}{there}")
        return found[0]
    runs = {run.info.run_id: run for run in [*_by_beginning(asked), *_by_name(asked)]}
    for run in () if runs else _by_beginning(asked, ViewType.DELETED_ONLY):
        return get_run(run.info.run_id)
    if not runs:
        raise UserError(
            f"run {asked!r} is not on {address()}: no id begins so (four letters at least), no run of this "
            "experiment is named so; `elbolab runs` lists the trainings"
        )
    return get_run(one_of(asked, [_named(run) for run in runs.values()]).id)


def find_training(asked: str, any_status: bool = False) -> RunRecord:
    """The training that is meant, a finished one unless ``any_status``.

    Raises UserError as ``find_run``, or where the run is something else.
    """
    run = find_run(asked)
    if (kind := run.tags.get(KIND)) != "train":
        raise UserError(f"run {run.id} is no train run ({KIND} is {kind}); name the run of a model's training")
    if run.status != FINISHED and not any_status:
        sync = ", or `elbolab sync` ends it where its process is gone" if run.status == RUNNING else ""
        raise UserError(f"run {run.id} is {run.status}; name a training that is FINISHED{sync}")
    return run


def find_id(asked: str) -> str:
    """The id of the run that is meant; of a whole id no server is asked."""
    return asked if ID.fullmatch(asked) else find_run(asked).id


def _by_beginning(asked: str, view: int = ViewType.ACTIVE_ONLY) -> Iterable[Run]:
    if not BEGINNING.fullmatch(asked):
        return []
    query = f"attributes.run_id LIKE '{asked}%'"
    most = LISTED + 1
    return mlflow.search_runs(None, query, view, most, output_format="list", search_all_experiments=True)


def _by_name(asked: str) -> Iterable[Run]:
    query, client = f"attributes.run_name = {quoted(asked)}", mlflow.MlflowClient()
    try:
        experiment = current_experiment()
    except UserError:
        # It is made by the first run that goes there.
        return []
    return all_pages(lambda token: client.search_runs([experiment], query, page_token=token))


def _named(run: Run) -> Named:
    return Named(run.info.run_id, run.info.run_name or "", run.data.params.get("model"))
