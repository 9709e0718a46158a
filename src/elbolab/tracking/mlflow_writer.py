"""What a journal's records mean to MLflow. Everything can be sent twice and is there once."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image, ImageOps

from elbolab.tracking.journal import Journal, Record, peek
from elbolab.tracking.keys import FAILURE, FILES, PARENT, RUNNING, SPOOL, VALUES
from elbolab.tracking.mlflow_reader import prepare_store

Package = Callable[[str, Path, np.ndarray], None]
"""Logs a checkpoint as a run's model: ``package(run_id, checkpoint, example)``, ``example`` uint8 (N, H, W, C)."""
METRICS_AT_ONCE = 500
# Of the picture that MLflow's pages show.
PREVIEW = (256, 256)


class WaitingError(Exception):
    """Something else has to be sent before."""


class MlflowWriter:
    """Sends the records of one journal, values and files apart, so that a full store of files holds up no metric.

    The first record says which run it is. A run is found again by its tag ``elbolab.spool``, MLflow keeps equal values
    once, files replace themselves, and ``package`` logs a model once; a journal without models needs none.
    """

    def __init__(self, journal: Journal, package: Package | None = None) -> None:
        self._journal = journal
        self._package = package

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        # To make one makes the tables of a store that has none.
        prepare_store()
        return mlflow.MlflowClient()

    @property
    def run_id(self) -> str | None:
        """Id of the run on the server; None as long as the server has not heard of it."""
        return self._journal.state.get("run_id")

    def left(self) -> int:
        """How many records are not sent."""
        return sum(place >= self._done(record["lane"]) for place, record in enumerate(self._journal.records))

    def send(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send all that there is, and what can be sent even where something cannot; raises the first error.

        Once it is ``stopped`` another process may have the journal: nothing more is sent, nor remembered.
        """
        if self.run_id is None:
            found = self._open(self._journal.records[0]["run"])
            if not stopped():
                self._journal.remember(run_id=found)
        errors = []
        # A run ends once its files are there.
        for lane, deliver in ((VALUES, self._values), (FILES, self._file), (VALUES, self._values)):
            try:
                while not stopped() and (batch := self._next(lane)):
                    deliver([record for _, record in batch])
                    if not stopped():
                        self._journal.remember(**{lane: batch[-1][0] + 1})
                        for file in (record["file"] for _, record in batch if "file" in record):
                            self._journal.drop(file)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _done(self, lane: str) -> int:
        """The place before which all records of a lane are sent."""
        return self._journal.state.get(lane, 0)

    def _next(self, lane: str) -> list[tuple[int, Record]]:
        """The records of a lane that go together now, with their places."""
        batch: list[tuple[int, Record]] = []
        metrics = 0
        for place, record in list(enumerate(self._journal.records))[self._done(lane) :]:
            if record["lane"] != lane:
                continue
            if (record.get("waits") and self._awaits_files(place)) or ("status" in record and batch):
                break
            batch.append((place, record))
            metrics += len(record.get("metrics", ()))
            if "status" in record or lane == FILES or metrics > METRICS_AT_ONCE:
                break
        return batch

    def _awaits_files(self, place: int) -> bool:
        return any(record["lane"] == FILES for record in self._journal.records[self._done(FILES) : place])

    def _open(self, run: Record) -> str:
        """Find the run, or make it."""
        if (known := run.get("id")) is not None:
            return known
        experiment = self._experiment(run)
        own = self._journal.folder.name
        if (found := self._find(own, experiment)) is not None:
            return found
        tags = {**run["tags"], SPOOL: own}
        if (parent := run.get("parent")) is not None:
            tags[PARENT] = self._above(parent, experiment)
        made = self._client.create_run(experiment, run["time"], tags, run["name"]).info.run_id
        # MLflow asks again where an answer is lost, and then there are two.
        return self._find(own, experiment) or made

    def _above(self, name: str, experiment: str) -> str:
        """Id of the run that is named by it or by its journal; raises WaitingError while that journal waits itself."""
        beside = self._journal.folder.with_name(name)
        if not beside.is_dir():
            return self._find(name, experiment) or name
        if (found := peek(beside).get("run_id")) is None:
            raise WaitingError(f"the run above is not there yet and waits in {beside}")
        return found

    def _experiment(self, run: Record) -> str:
        if "experiment_id" in run:
            return run["experiment_id"]
        if (experiment := self._client.get_experiment_by_name(run["experiment"])) is not None:
            return experiment.experiment_id
        try:
            return self._client.create_experiment(run["experiment"])
        except MlflowException:
            # Another process may have made it in between.
            if (experiment := self._client.get_experiment_by_name(run["experiment"])) is None:
                raise
            return experiment.experiment_id

    def _find(self, journal: str, experiment: str) -> str | None:
        """Id of the run of a journal, of which there is one from then on."""
        runs = self._client.search_runs([experiment], f"tags.`{SPOOL}` = '{journal}'")
        found = sorted(run.info.run_id for run in runs)
        for twin in found[1:]:
            self._client.delete_run(twin)
        return found[0] if found else None

    def _values(self, batch: list[Record]) -> None:
        assert self.run_id is not None
        metrics = [
            Metric(key, value, record["time"], record["step"])
            for record in batch
            for key, value in record.get("metrics", {}).items()
        ]
        tags = {key: value for record in batch for key, value in record.get("tags", {}).items()}
        params = {key: value for record in batch for key, value in record.get("params", {}).items()}
        if params:
            # `mlflow run -P` logs its own spelling of a value (1e-3) first.
            present = self._client.get_run(self.run_id).data.params
            params = {key: value for key, value in params.items() if key not in present}
        if metrics or tags or params:
            self._client.log_batch(
                self.run_id,
                metrics,
                [Param(key, value) for key, value in params.items()],
                [RunTag(key, value) for key, value in tags.items()],
            )
        if (status := batch[-1].get("status")) is None:
            return
        run = self._client.get_run(self.run_id)
        if status == RUNNING:
            self._client.update_run(self.run_id, status)
            if FAILURE in run.data.tags:
                self._client.delete_tag(self.run_id, FAILURE)
        # A later call may have taken up the run and ended it.
        elif run.info.status == RUNNING or (run.info.end_time or 0) <= batch[-1]["time"]:
            self._client.set_terminated(self.run_id, status, batch[-1]["time"])

    def _file(self, batch: list[Record]) -> None:
        assert self.run_id is not None
        (record,) = batch
        if "data" in record:
            dataset = DatasetInput(Dataset(**record["data"]), [InputTag("mlflow.data.context", "training")])
            self._client.log_inputs(self.run_id, [dataset])
            return
        path = self._journal.folder / record["file"]
        if "image" in record:
            self._image(path, record)
        elif "example" in record:
            assert self._package is not None, "a run with a model is started with what packages it"
            self._package(self.run_id, path, np.array(record["example"], np.uint8))
        else:
            self._client.log_artifact(self.run_id, str(path), record["folder"])

    def _image(self, path: Path, record: Record) -> None:
        """What MLflow's log_image does, under names that are the same again."""
        assert self.run_id is not None
        name = f"{record['image']}+step+{record['step']}+timestamp+{record['time']}+{path.parent.name}"
        with Image.open(path) as picture:
            picture.save(whole := path.with_name(f"{name}.png"))
            ImageOps.contain(picture, PREVIEW).save(preview := path.with_name(f"{name}+compressed.webp"))
        for file in (whole, preview):
            self._client.log_artifact(self.run_id, str(file), "images")
        self._client.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, "True")
