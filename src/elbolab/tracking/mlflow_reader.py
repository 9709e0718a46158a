"""Reading runs: those that a server has, and their histories."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.entities import PagedList
from mlflow.utils.rest_utils import http_request_safe
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from elbolab.config.schema import ResumeConfig
from elbolab.config.version_0_1_0 import with_added
from elbolab.evaluation.metrics import ACCURACY, LOG_PX
from elbolab.support.databases import refuse_foreign
from elbolab.support.errors import UserError, reason, redacted
from elbolab.support.sqlite import first_use
from elbolab.tracking.keys import EVALUATION_PROTOCOL, FINISHED, HALF_SENT, KIND, SOURCES

T = TypeVar("T")
NOTHING: Mapping[str, str] = {}
PAGE = 1000
# What a server takes and gives of histories in one call.
RUNS_A_CALL, VALUES_A_CALL = 100, 25_000


@dataclass(frozen=True)
class RunRecord:
    """A run as the server has it: last value of each metric that is a number, ``url`` of its page if any.

    ``start`` is in milliseconds since 1970, ``seconds`` what it took, none where the clock went back meanwhile;
    ``train_images`` is None where it logged no data.
    """

    id: str
    name: str
    experiment: str
    status: str
    start: int
    seconds: float
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    url: str | None
    train_images: int | None = None


def is_latent(run: RunRecord) -> bool:
    """Whether a run's model is a density of images rather than a classifier."""
    return run.tags.get("observation_model") != "categorical"


def is_evaluated(run: RunRecord) -> bool:
    """Whether an evaluation has left its figures on a run, all of them."""
    if run.tags.get(EVALUATION_PROTOCOL) == HALF_SENT:
        return False
    return (LOG_PX if is_latent(run) else ACCURACY).at("test") in run.metrics


def prepare_store() -> None:
    """Make the tables of a store that has none; of first uses of a SQLite file at the same time the others wait.

    Raises MlflowException where a database does not answer, and UserError where the address can never be that of a
    store, or its tables are those of another version of MLflow or of another program.
    """
    uri = mlflow.get_tracking_uri()
    with first_use(uri):
        try:
            if urlsplit(uri).scheme.startswith(tuple(DATABASE_ENGINES)):
                refuse_foreign(uri, "experiments", "MLflow")
            # To make one asks a database, but no server.
            mlflow.MlflowClient()
        except (OperationalError, InterfaceError) as error:
            raise MlflowException(f"{address()}: {reason(error)}", error_code=TEMPORARILY_UNAVAILABLE) from error
        except (MlflowException, SQLAlchemyError, ImportError) as error:
            if "database schema" not in str(error):
                raise UserError(
                    f"MLFLOW_TRACKING_URI={address()!r} cannot be the tracking store: {reason(error)}; name another"
                ) from error
            raise UserError(
                f"{address()} has the tables of another MLflow than {mlflow.__version__}: copy it and run "
                f"`mlflow db upgrade {address()}`, or where that cannot, install the MLflow that wrote it"
            ) from error


# Where the artifacts of a run are never changes, and MLflow would ask for it at each file.
ARTIFACT_URIS: dict[str, str] = {}


def _record(found: Run) -> RunRecord:
    info, data = found.info, found.data
    ARTIFACT_URIS[info.run_id] = str(info.artifact_uri)
    # `mlflow run -P` logs what was typed: `latent-dim` beside our `latent_dim`, and the flags that take up a run.
    typed = {key for key in data.params if "-" in key} | ResumeConfig.model_fields.keys()
    params = {key: value for key, value in data.params.items() if key not in typed}
    params |= json.loads(data.tags.get(SOURCES, "{}"))
    shape, metrics = _train_shape(found), {key: value for key, value in data.metrics.items() if value == value}
    return RunRecord(
        info.run_id, info.run_name or "", info.experiment_id, info.status, info.start_time,
        max(0, (info.end_time or info.start_time) - info.start_time) / 1000,
        with_added(params, shape[2:]), dict(data.tags), metrics,
        page_of(info.experiment_id, info.run_id), shape[0] if shape else None,
    )  # fmt: skip


def _train_shape(found: Run) -> list[int]:
    """The shape of a run's training images, (N, C, H, W); empty where it has not logged them."""
    for one in found.inputs.dataset_inputs if found.inputs else ():
        if shape := json.loads(one.dataset.profile or "{}").get("features_shape"):
            return shape
    return []


def page_of(experiment: str, run_id: str) -> str | None:
    """The address of a run's page, where the tracking server has one."""
    server = urlsplit(mlflow.get_tracking_uri())
    # A page may be read by others than who may write to its server.
    public = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return f"{public}/#/experiments/{experiment}/runs/{run_id}" if public.startswith("http") else None


def address() -> str:
    """The tracking server that runs go to, as it may be shown: without a password."""
    return redacted(mlflow.get_tracking_uri())


def current_experiment() -> str:
    """Id of the experiment that new runs go to; raises UserError where it does not exist yet."""
    prepare_store()
    if (experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID")) is not None:
        try:
            return mlflow.get_experiment(experiment_id).experiment_id
        except MlflowException as error:
            if error.error_code not in map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)):
                raise
            raise UserError(
                f"MLFLOW_EXPERIMENT_ID={experiment_id!r} is no experiment on {address()}; unset it, or name another"
            ) from None
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        raise UserError(f"there is no experiment {name!r} on {address()}; train a model first")
    return experiment.experiment_id


def find_runs(
    kind: str | None = "train",
    params: Mapping[str, str] = NOTHING,
    tags: Mapping[str, str] = NOTHING,
    limit: int | None = None,
    status: str | None = FINISHED,
    everywhere: bool = False,
) -> list[RunRecord]:
    """The runs of a kind and a status, or of any, in the current experiment that have these ``params`` and ``tags``.

    The server chooses them, newest first; ``limit`` is how many it gives at most. ``everywhere`` is in all experiments.
    """
    conditions = [f"attributes.status = '{status}'"] if status else []
    conditions += [f"params.`{key}` = {quoted(value)}" for key, value in params.items()]
    return _search(kind, tags, conditions, limit, everywhere)


def newest_of_each(param: str, tags: Mapping[str, str] = NOTHING, kind: str = "train") -> list[RunRecord]:
    """The newest finished run of a kind for each value of a parameter, of those that have these ``tags``."""
    found: list[RunRecord] = []
    finished = f"attributes.status = '{FINISHED}'"
    while another := _search(
        kind, tags, [finished, *(f"params.`{param}` != {quoted(run.params[param])}" for run in found)], 1
    ):
        found += another
    return found


def _search(
    kind: str | None, tags: Mapping[str, str], conditions: list[str], limit: int | None, everywhere: bool = False
) -> list[RunRecord]:
    tagged = [is_tag(KIND, kind) if kind else f"tags.`{KIND}` LIKE '%'"]
    tagged += [is_tag(key, value) for key, value in tags.items()]
    query = " and ".join([*tagged, *conditions])
    own, client = current_experiment(), mlflow.MlflowClient()
    every = all_pages(lambda token: client.search_experiments(page_token=token)) if everywhere else ()
    experiments = [experiment.experiment_id for experiment in every] or [own]
    size = PAGE if limit is None else min(PAGE, limit)
    found = all_pages(lambda token: client.search_runs(experiments, query, max_results=size, page_token=token))
    return [_record(run) for run in islice(found, limit)]


def all_pages(search: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """What a search gives page by page, called with the token of each."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def is_tag(key: str, value: str) -> str:
    """The condition of a search that a tag has a value; raises UserError where no server can look for the value."""
    return f"tags.`{key}` = {quoted(value)}"


def quoted(value: str) -> str:
    """A value as a search has it; raises UserError where no server can look for it."""
    if "'" in value and '"' in value:
        raise UserError(f"{value!r} has both kinds of quotes, and a server can look for none such; rename it")
    return f'"{value}"' if "'" in value else f"'{value}'"


def get_run(run_id: str) -> RunRecord:
    """The run of this id; raises UserError where the server has none, or it is deleted."""
    prepare_store()
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise UserError(f"run {run_id!r} is not on {address()}: {error.message}") from error
    if run.info.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(f"run {run_id} is deleted; bring it back by `mlflow runs restore --run-id {run_id}`")
    return _record(run)


def evaluated_metrics(run_id: str) -> set[str]:
    """Keys of what evaluations logged on a run."""
    return {metric.key for metric in mlflow.MlflowClient().get_run(run_id).data.to_proto().metrics if metric.step == 0}


def history(run_ids: list[str]) -> pd.DataFrame:
    """Every train/* and val/* metric that the runs logged by epoch, a row a value: columns run, key, step, value."""
    keys: dict[str, list[str]] = {}
    for start in range(0, len(run_ids), RUNS_A_CALL):
        some = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + RUNS_A_CALL])
        query = f"attributes.run_id IN ({some})"
        for run in mlflow.search_runs(filter_string=query, search_all_experiments=True, output_format="list"):
            # An evaluation logs each of its figures once, at step 0.
            for metric in run.data.to_proto().metrics:
                if metric.key.startswith(("train/", "val/")) and metric.step > 0:
                    keys.setdefault(metric.key, []).append(run.info.run_id)
    rows = [(run, key, step, value) for key in keys for run, step, value in values_of(keys[key], key)]
    return pd.DataFrame(rows, columns=["run", "key", "step", "value"])


def values_of(run_ids: Sequence[str], key: str) -> list[tuple[str, int, float]]:
    """Run, step and value of everything that was logged under ``key``, run by run in the order of logging."""
    if len(run_ids) > RUNS_A_CALL:
        return _halves(run_ids, key)
    found = _in_one_call(run_ids, key) if len(run_ids) > 1 else None
    if found is None:
        client = mlflow.MlflowClient()
        return [(run, item.step, item.value) for run in run_ids for item in client.get_metric_history(run, key)]
    return found if len(found) < VALUES_A_CALL else _halves(run_ids, key)


def _halves(run_ids: Sequence[str], key: str) -> list[tuple[str, int, float]]:
    middle = len(run_ids) // 2
    return values_of(run_ids[:middle], key) + values_of(run_ids[middle:], key)


def _in_one_call(run_ids: Sequence[str], key: str) -> list[tuple[str, int, float]] | None:
    """Their first ``VALUES_A_CALL`` values; None from a server that does not know the call."""
    # MLflow's client does not have it.
    store = mlflow.MlflowClient()._tracking_client.store
    if (read := getattr(store, "get_metric_history_bulk", None)) is not None:
        return [(item.run_id, item.step, item.value) for item in read(run_ids, key, VALUES_A_CALL)]
    call = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    asked = {"run_id": run_ids, "metric_key": key, "max_results": VALUES_A_CALL}
    try:
        answer = http_request_safe(store.get_host_creds(), call, "GET", params=asked)
    except MlflowException as error:
        if error.get_http_status_code() == 404:
            return None
        raise
    return [(row["run_id"], row["step"], row["value"]) for row in answer.json()["metrics"]]
