"""Writing and reading runs: the one import of mlflow outside the registry."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.artifacts
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from elbolab import histories
from elbolab.errors import UserError
from elbolab.report.curves import draw_curves
from elbolab.sqlite import PREFIX, first_use

if TYPE_CHECKING:
    # Comparing runs takes no torch, whose import takes seconds.
    from torch import Tensor

    from elbolab.data import Data
    from elbolab.trainer import Event

KIND, FAILURE = "elbolab.kind", "failure"
NOTHING: Mapping[str, str] = {}
PAGE = 1000


@dataclass(frozen=True)
class RunRecord:
    """A run as the server has it: last value of each metric, ``start`` in milliseconds, ``url`` of its page if any."""

    id: str
    name: str
    experiment: str
    status: str
    start: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    url: str | None


class Tracker:
    """The writing end of one run that is under way."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = mlflow.MlflowClient()
        self._history: list[dict[str, float]] = []

    def log_params(self, params: dict[str, str]) -> None:
        """Log the parameters that the run has not: `mlflow run -P` logs its own spelling of a value (1e-3) first."""
        present = self._client.get_run(self.id).data.params
        absent = [Param(key, value) for key, value in params.items() if key not in present]
        self._client.log_batch(self.id, params=absent)

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log all of ``metrics`` in one call."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set all of ``tags`` in one call."""
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        self._client.log_artifact(self.id, str(path), folder)

    def log_value(self, value: Any, path: str) -> None:
        """Keep a table as Parquet, named arrays as npz, anything else as JSON, as the artifact ``path``."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(path).name)
            if isinstance(value, pd.DataFrame):
                value.to_parquet(file, index=False)
            elif file.suffix == ".npz":
                np.savez_compressed(file, **value)
            else:
                file.write_text(json.dumps(value, indent=1))
            self.log_artifact(file, str(Path(path).parent) if "/" in path else None)

    def log_data(self, data: "Data") -> None:
        """Log the training images as the run's input, with the digest of all the content of all splits."""
        images, labels = data.train.images.cpu().numpy(), data.train.labels.cpu().numpy()
        dataset = mlflow.data.from_numpy(images, targets=labels, name=data.name, digest=data.spec.digest)  # pyright: ignore
        mlflow.log_input(dataset, context="training")

    def report(self, event: "Event") -> None:
        """Log an epoch: its metrics in one call, its images by step."""
        self._history.append(event.metrics)
        self.log_metrics(event.metrics, event.epoch)
        for key, grid in event.images.items():
            self._client.log_image(self.id, _tile(grid), key=key, step=event.epoch, synchronous=True)

    def log_curves(self) -> None:
        """Log the figure of the metrics reported so far, training against validation."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "curves.png")
            draw_curves(self._history, file)
            self.log_artifact(file, "figures")


def _tile(grid: "Tensor") -> np.ndarray:
    """Images (rows, columns, C, H, W) in [0, 1] as one uint8 picture (height, width, C), a white pixel between them."""
    rows, columns, channels, height, width = grid.shape
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    pixels = (grid * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + 1), column * (width + 1)
            picture[top : top + height, left : left + width] = pixels[row, column]
    return picture


@contextmanager
def run(
    kind: str, name: str, params: dict[str, str], tags: dict[str, str], run_id: str | None = None
) -> Iterator[Tracker]:
    """A run under way: ``run_id`` taken up again, else the one that `mlflow run` made, else a new one.

    A new one is nested in the one that is active, if any. It ends FINISHED, or KILLED when it is interrupted, or FAILED
    with the reason as the tag ``failure``.
    """
    prepare_store()
    active = mlflow.start_run(run_id, run_name=name, nested=mlflow.active_run() is not None)
    tracker = Tracker(active.info.run_id)
    status = RunStatus.FAILED
    if FAILURE in active.data.tags:
        mlflow.MlflowClient().delete_tag(tracker.id, FAILURE)
    try:
        tracker.set_tags({KIND: kind, "mlflow.runName": name, **_code(), **tags})
        tracker.log_params(params)
        yield tracker
        status = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        status = RunStatus.KILLED
        raise
    except BaseException as error:
        tracker.set_tags({FAILURE: f"{type(error).__name__}: {error}"[:500]})
        raise
    finally:
        mlflow.end_run(RunStatus.to_string(status))


def prepare_store() -> None:
    """Migrate a sqlite store and put it into WAL mode, once, so that first uses at the same time do not collide."""
    uri = mlflow.get_tracking_uri()
    with first_use(uri):
        if uri.startswith(PREFIX):
            mlflow.MlflowClient().search_experiments(max_results=1)


def _code() -> dict[str, str]:
    """The commit that this code stands at, and whether it has been changed since; nothing outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git.commit": git("rev-parse", "HEAD"), "git.dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


# Where the artifacts of a run are never changes, and MLflow would ask for it at each file.
_ARTIFACT_URIS: dict[str, str | None] = {}


def _record(found: Run) -> RunRecord:
    info, data = found.info, found.data
    _ARTIFACT_URIS[info.run_id] = info.artifact_uri
    server = mlflow.get_tracking_uri()
    url = (
        f"{server.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        if server.startswith("http")
        else None
    )
    return RunRecord(
        info.run_id, info.run_name or "", info.experiment_id, info.status, info.start_time,
        dict(data.params), dict(data.tags), dict(data.metrics), url,
    )  # fmt: skip


def address() -> str:
    """The tracking server that runs go to."""
    return mlflow.get_tracking_uri()


def current_experiment() -> str:
    """Id of the experiment that new runs go to; raises UserError where it does not exist yet."""
    prepare_store()
    if (experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID")) is not None:
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        raise UserError(f"there is no experiment {name!r} on {mlflow.get_tracking_uri()}; train a model first")
    return experiment.experiment_id


def find_runs(
    kind: str = "train",
    params: Mapping[str, str] = NOTHING,
    tags: Mapping[str, str] = NOTHING,
    limit: int | None = None,
) -> list[RunRecord]:
    """The finished runs of a kind in the current experiment that have these ``params`` and ``tags``, newest first.

    The server chooses them; ``limit`` is how many it gives at most.
    """
    conditions = [f"params.`{key}` = {_quoted(value)}" for key, value in params.items()]
    conditions += [f"tags.`{key}` = {_quoted(value)}" for key, value in {KIND: kind, **tags}.items()]
    return _search(conditions, limit)


def newest_of_each(param: str, tags: Mapping[str, str] = NOTHING) -> list[RunRecord]:
    """The newest finished train run for each value of a parameter, of those that have these ``tags``, newest first."""
    conditions = [f"tags.`{key}` = {_quoted(value)}" for key, value in {KIND: "train", **tags}.items()]
    found: list[RunRecord] = []
    while another := _search(conditions, 1):
        found += another
        conditions.append(f"params.`{param}` != {_quoted(another[0].params[param])}")
    return found


def _search(conditions: list[str], limit: int | None) -> list[RunRecord]:
    query = " and ".join(["attributes.status = 'FINISHED'", *conditions])
    client, experiment = mlflow.MlflowClient(), current_experiment()
    found: list[RunRecord] = []
    token = None
    while True:
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        page = client.search_runs([experiment], query, max_results=size, page_token=token)
        found += map(_record, page)
        if not (token := page.token) or len(found) == limit:
            return found


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def get_run(run_id: str) -> RunRecord:
    """The run of this id; raises UserError where the server has none."""
    prepare_store()
    try:
        return _record(mlflow.MlflowClient().get_run(run_id))
    except MlflowException as error:
        raise UserError(f"run {run_id!r} is not on {mlflow.get_tracking_uri()}: {error.message}") from error


def history(run_ids: list[str]) -> pd.DataFrame:
    """Every train/* and val/* metric that the runs logged by epoch, a row a value: columns run, key, step, value."""
    keys: dict[str, list[str]] = {}
    for start in range(0, len(run_ids), histories.RUNS_A_CALL):
        some = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + histories.RUNS_A_CALL])
        query = f"attributes.run_id IN ({some})"
        for run in mlflow.search_runs(filter_string=query, search_all_experiments=True, output_format="list"):
            # An evaluation logs each of its figures once, at step 0.
            for metric in run.data.to_proto().metrics:
                if metric.key.startswith(("train/", "val/")) and metric.step > 0:
                    keys.setdefault(metric.key, []).append(run.info.run_id)
    rows = [(run, key, step, value) for key in keys for run, step, value in histories.values(keys[key], key)]
    return pd.DataFrame(rows, columns=["run", "key", "step", "value"])


def list_artifacts(run_id: str, path: str = "") -> list[str]:
    """Paths of the artifacts directly under ``path``."""
    return [item.path for item in mlflow.MlflowClient().list_artifacts(run_id, path or None)]


def fetch(run_id: str, path: str) -> Path:
    """A local copy of an artifact; raises UserError where the run has none of that path."""
    try:
        # By its address, since MLflow would ask for the run twice more and copy a file that is on this machine.
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{_artifact_uri(run_id)}/{path}"))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} has no artifact {path!r}") from error


def _artifact_uri(run_id: str) -> str | None:
    if run_id not in _ARTIFACT_URIS:
        get_run(run_id)
    return _ARTIFACT_URIS[run_id]


def step_images(run_id: str, key: str) -> dict[int, Path]:
    """The PNGs that were logged under ``key``, by step."""
    found = {}
    for path in list_artifacts(run_id, "images"):
        # MLflow's names read key%step%5%timestamp%1700000000000%uuid.png.
        parts = Path(path).name.replace("+", "%").split("%")
        if parts[0] == key and path.endswith(".png"):
            found[int(parts[2])] = fetch(run_id, path)
    return dict(sorted(found.items()))
