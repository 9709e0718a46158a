"""What a spool's records mean to MLflow. Everything can be sent twice and is there once."""

from functools import cached_property

import mlflow
import numpy as np
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from PIL import Image

from elbolab.records import model_of, prepare_store
from elbolab.spool import Record, Spool

SPOOL, FAILURE = "elbolab.spool", "failure"
VALUES, FILES = "values", "files"
METRICS_AT_ONCE = 500


class Delivery:
    """Sends the records of one spool, values and files apart, so that a full store of files holds up no metric.

    The first record says which run it is. A run is found again by its tag ``elbolab.spool``, MLflow keeps equal values
    once, files replace themselves, and images and models are looked for before.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        # To make one makes the tables of a store that has none.
        prepare_store()
        return mlflow.MlflowClient()

    @property
    def run_id(self) -> str | None:
        """Id of the run on the server; None as long as the server has not heard of it."""
        return self._spool.state.get("run_id")

    def left(self) -> int:
        """How many records are not sent."""
        return sum(place >= self._done(record["lane"]) for place, record in enumerate(self._spool.records))

    def send(self) -> None:
        """Send all that there is, and what can be sent even where something cannot; raises the first error."""
        if self.run_id is None:
            self._spool.remember(run_id=self._open(self._spool.records[0]["run"]))
        errors = []
        # A run ends once its files are there.
        for lane, deliver in ((VALUES, self._values), (FILES, self._file), (VALUES, self._values)):
            try:
                while batch := self._next(lane):
                    deliver([record for _, record in batch])
                    self._spool.remember(**{lane: batch[-1][0] + 1})
                    for file in (record["file"] for _, record in batch if "file" in record):
                        self._spool.drop(file)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _done(self, lane: str) -> int:
        """The place before which all records of a lane are sent."""
        return self._spool.state.get(lane, 0)

    def _next(self, lane: str) -> list[tuple[int, Record]]:
        """The records of a lane that go together now, with their places."""
        batch: list[tuple[int, Record]] = []
        metrics = 0
        for place, record in list(enumerate(self._spool.records))[self._done(lane) :]:
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
        return any(record["lane"] == FILES for record in self._spool.records[self._done(FILES) : place])

    def _open(self, run: Record) -> str:
        """Find the run, or make it."""
        if (known := run.get("id")) is not None:
            return known
        experiment = self._experiment(run)
        if (found := self._find(self._spool.folder.name, experiment)) is not None:
            return found
        tags = {**run["tags"], SPOOL: self._spool.folder.name}
        if (parent := run.get("parent")) is not None:
            tags["mlflow.parentRunId"] = self._find(parent, experiment) or parent
        return self._client.create_run(experiment, run["time"], tags, run["name"]).info.run_id

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

    def _find(self, spool: str, experiment: str) -> str | None:
        query = f"tags.`{SPOOL}` = '{spool}'"
        found = self._client.search_runs([experiment], query, ViewType.ALL, max_results=1)
        return found[0].info.run_id if found else None

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
        if (status := batch[-1].get("status")) == RunStatus.to_string(RunStatus.RUNNING):
            self._client.update_run(self.run_id, status)
            if FAILURE in self._client.get_run(self.run_id).data.tags:
                self._client.delete_tag(self.run_id, FAILURE)
        elif status is not None:
            self._client.set_terminated(self.run_id, status, batch[-1]["time"])

    def _file(self, batch: list[Record]) -> None:
        assert self.run_id is not None
        (record,) = batch
        if "data" in record:
            dataset = DatasetInput(Dataset(**record["data"]), [InputTag("mlflow.data.context", "training")])
            self._client.log_inputs(self.run_id, [dataset])
            return
        path = self._spool.folder / record["file"]
        if "image" in record:
            self._image(np.asarray(Image.open(path)), record)
        elif "example" in record:
            # Comparing runs takes no torch, whose import takes seconds.
            from elbolab.registry import log_model

            if model_of(self.run_id) is None:
                log_model(self.run_id, path, np.array(record["example"], np.uint8))
        else:
            self._client.log_artifact(self.run_id, str(path), record["folder"])

    def _image(self, picture: np.ndarray, record: Record) -> None:
        assert self.run_id is not None
        key, step, moment = record["image"], record["step"], record["time"]
        start = [key, "step", str(step), "timestamp", str(moment)]
        names = [item.path.rsplit("/", 1)[-1] for item in self._client.list_artifacts(self.run_id, "images")]
        if not any(name.replace("+", "%").split("%")[:5] == start for name in names):
            self._client.log_image(self.run_id, picture, key=key, step=step, timestamp=moment, synchronous=True)
