"""Writing to MLflow: runs, and a journal's records as they are sent. What is sent twice is stored once."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import name_utils
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_RUN_NAME
from PIL import Image, ImageOps

from elbolab.support.errors import UserError
from elbolab.tracking import records
from elbolab.tracking.journal import Journal, read_state
from elbolab.tracking.keys import EVALUATION_PROTOCOL, EVALUATION_TIME, FAILURE, HALF_SENT, KIND, PARENT, RUNNING, SPOOL
from elbolab.tracking.mlflow_reader import NOTHING, PAGE, all_pages, is_tag, prepare_store
from elbolab.tracking.moved_folders import refuse_moved

Package = Callable[[str, Path, np.ndarray], None]
"""Logs a checkpoint as a run's model: ``package(run_id, checkpoint, example)``, ``example`` uint8 (N, H, W, C)."""
METRICS_AT_ONCE = 500
# Of the picture that MLflow's pages show.
PREVIEW = (256, 256)
# The names that MLflow makes up.
WORDS = "|".join(name_utils._GENERATOR_PREDICATES), "|".join(name_utils._GENERATOR_NOUNS)
GENERATED = re.compile("({})-({})-\\d+".format(*WORDS), re.IGNORECASE)


Value = tuple[str, float, int, int]
"""Key, value, time in milliseconds since 1970, and step of a metric."""


def now() -> str:
    """The time, UTC, as ISO 8601 to the millisecond: later is greater."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class MlflowRuns:
    """The runs of the present server, which is first asked when they are needed.

    Every method raises MlflowException where the server does not answer or refuses.
    """

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client."""
        # To make one makes the tables of a store that has none.
        prepare_store()
        return mlflow.MlflowClient()

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """The runs of an experiment that have these tags, the oldest first."""
        query = " and ".join(is_tag(key, value) for key, value in tags.items())
        client = self.client
        found = all_pages(lambda token: client.search_runs([experiment], query, max_results=PAGE, page_token=token))
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def keep_one(self, runs: Sequence[Run]) -> Run | None:
        """The first of runs that should be one, None of none; the others are deleted."""
        for twin in runs[1:]:
            self.client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def log(
        self,
        run_id: str,
        values: Iterable[Value] = (),
        params: Mapping[str, str] = NOTHING,
        tags: Mapping[str, str] = NOTHING,
    ) -> None:
        """Log all of it in one call, or none where there is nothing to log."""
        batch = [Metric(*value) for value in values], [Param(*one) for one in params.items()]
        marks = [RunTag(*one) for one in tags.items()]
        if any((*batch, marks)):
            self.client.log_batch(run_id, *batch, marks)


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
        self._runs = MlflowRuns()
        self.is_there = False
        """Whether this writer has found the run on the server, and can write to it."""
        self.is_outdated = False
        """Whether it has dropped the rest of an evaluation, since the run has a newer one."""
        self._sent = ""

    @property
    def run_id(self) -> str | None:
        """Id of the run on the server; None as long as the server does not have it."""
        return self._journal.state.get("run_id")

    def left(self) -> int:
        """How many records are not sent."""
        return sum(place >= self._done(record.lane) for place, record in enumerate(self._journal.records))

    def send(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send all that there is, and what can be sent even where something cannot.

        Once it is ``stopped`` another process may have the journal: nothing more is sent, nor written to the journal.
        What is left of an evaluation is dropped once the run has a newer one. Raises the first error: MlflowException,
        WaitingError, OSError where a file cannot be read, or UserError where the run is deleted or its own folder was
        moved.
        """
        if not self.is_there:
            found = self._present(self.run_id).info.run_id if self.run_id else self._find_or_make()
            if not stopped():
                self._journal.update_state(run_id=found)
            self.is_there = True
        errors = []
        # A run ends once its files are there.
        for lane, send in ((records.VALUES, self._values), (records.FILES, self._file), (records.VALUES, self._values)):
            try:
                while not stopped() and (batch := self._next(lane)):
                    if self._drop_outdated():
                        return
                    send([record for _, record in batch])
                    self._sent = now()
                    if not stopped():
                        self._journal.update_state(**{lane: batch[-1][0] + 1})
                        for _, record in batch:
                            if isinstance(record, records.File):
                                self._journal.remove_file(record.file)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _drop_outdated(self) -> bool:
        tags = [record.tags for record in self._journal.records if isinstance(record, records.Tags)]
        own = next((some[EVALUATION_TIME] for some in tags if EVALUATION_TIME in some), None)
        if own is None:
            return False
        assert self.run_id is not None
        newer = self._runs.client.get_run(self.run_id).data.tags.get(EVALUATION_TIME, "")
        if newer <= own:
            return False
        if self._sent >= newer:
            # What was on its way meanwhile may have replaced something of the newer one.
            self._runs.client.set_tag(self.run_id, EVALUATION_PROTOCOL, HALF_SENT)
        self._journal.update_state(**dict.fromkeys((records.VALUES, records.FILES), len(self._journal.records)))
        self.is_outdated = True
        return True

    def _done(self, lane: str) -> int:
        return self._journal.state.get(lane, 0)

    def _next(self, lane: str) -> list[tuple[int, records.Record]]:
        """The records of a lane that go together now, with their places."""
        batch: list[tuple[int, records.Record]] = []
        metrics = 0
        for place, record in list(enumerate(self._journal.records))[self._done(lane) :]:
            if record.lane != lane:
                continue
            changes_status = isinstance(record, records.Begin | records.End) and record.status is not None
            waits = isinstance(record, records.Tags | records.End) and record.waits and self._awaits_files(place)
            if waits or (changes_status and batch):
                break
            batch.append((place, record))
            metrics += len(record.metrics) if isinstance(record, records.Metrics) else 0
            if changes_status or lane == records.FILES or metrics > METRICS_AT_ONCE:
                break
        return batch

    def _awaits_files(self, place: int) -> bool:
        return any(record.lane == records.FILES for record in self._journal.records[self._done(records.FILES) : place])

    def _find_or_make(self) -> str:
        first = self._journal.records[0]
        assert isinstance(first, records.Begin | records.Attach)
        assert first.run is not None
        new, own = first.run, self._journal.folder.name
        if "id" in new:
            tags = self._present(new["id"]).data.tags
            if "otherwise" not in new:
                return new["id"]
            if tags.get(SPOOL, own) == own and (SPOOL in tags or KIND not in tags):
                self._runs.client.set_tag(new["id"], SPOOL, own)
                return new["id"]
            new = new["otherwise"]
        experiment = self._experiment(new)
        if (found := self._find(own, experiment)) is not None:
            return found
        refuse_moved(self._runs.client.get_experiment(experiment).artifact_location)
        tags = {**new["tags"], SPOOL: own}
        if new["parent"] is not None:
            tags[PARENT] = self._above(new["parent"], experiment)
        made = self._runs.client.create_run(experiment, new["time"], tags, new["name"])
        # MLflow asks again where an answer is lost, and then there are two.
        return self._find(own, experiment) or made.info.run_id

    def _present(self, run_id: str) -> Run:
        """The run of this id; raises UserError where it is deleted or its folder was moved: nothing would be kept."""
        run = self._runs.client.get_run(run_id)
        refuse_moved(str(run.info.artifact_uri))
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise UserError(f"run {run_id} is deleted; bring it back by `mlflow runs restore --run-id {run_id}`")
        return run

    def _find(self, journal: str, experiment: str) -> str | None:
        """Id of the run of a journal, of which there is one from then on."""
        run = self._runs.keep_one(self._runs.find(experiment, {SPOOL: journal}))
        return run and run.info.run_id

    def _above(self, name: str, experiment: str) -> str:
        """Id of the run that is named by it or by its journal; raises WaitingError while that journal waits itself."""
        beside = self._journal.folder.with_name(name)
        if not beside.is_dir():
            return self._find(name, experiment) or name
        if (found := read_state(beside).get("run_id")) is None:
            raise WaitingError(f"the run above is not there yet and waits in {beside}")
        return found

    def _experiment(self, run: records.NewRun) -> str:
        if "experiment_id" in run:
            return run["experiment_id"]
        assert "experiment" in run
        client, name = self._runs.client, run["experiment"]
        if (experiment := client.get_experiment_by_name(name)) is not None:
            return experiment.experiment_id
        try:
            return client.create_experiment(name)
        except MlflowException:
            # Another process may have made it in between.
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
            return experiment.experiment_id

    def _values(self, batch: Sequence[records.Record]) -> None:
        assert self.run_id is not None
        client = self._runs.client
        values = [
            (key, value, record.time, record.step)
            for record in batch
            if isinstance(record, records.Metrics)
            for key, value in record.metrics.items()
        ]
        begun = [record for record in batch if isinstance(record, records.Begin)]
        tagged = [record for record in batch if isinstance(record, records.Begin | records.Tags)]
        params = {key: value for record in begun for key, value in record.params.items()}
        tags = {key: value for record in tagged for key, value in record.tags.items()}
        if begun:
            present = client.get_run(self.run_id)
            # `mlflow run -P` logs its own spelling of a value (1e-3) first, and its --run-name is the user's.
            params = {key: value for key, value in params.items() if key not in present.data.params}
            if (name := present.info.run_name) and not GENERATED.fullmatch(name):
                tags.pop(MLFLOW_RUN_NAME, None)
        self._runs.log(self.run_id, values, params, tags)
        last = batch[-1]
        if isinstance(last, records.Begin) and last.status is not None:
            client.update_run(self.run_id, RUNNING)
            # It is resumed, and has not failed any more.
            if FAILURE in client.get_run(self.run_id).data.tags:
                client.delete_tag(self.run_id, FAILURE)
        if isinstance(last, records.End):
            info = client.get_run(self.run_id).info
            if records.is_newest(last, info.status, info.end_time):
                client.set_terminated(self.run_id, last.status, last.time)

    def _file(self, batch: Sequence[records.Record]) -> None:
        assert self.run_id is not None
        (record,) = batch
        if isinstance(record, records.Inputs):
            dataset = DatasetInput(Dataset(**record.data), [InputTag("mlflow.data.context", "training")])
            self._runs.client.log_inputs(self.run_id, [dataset])
            return
        assert isinstance(record, records.File)
        path = self._journal.folder / record.file
        if isinstance(record, records.Picture):
            self._image(path, record)
        elif isinstance(record, records.Checkpoint):
            assert self._package is not None, "a run with a model is started with what packages it"
            self._package(self.run_id, path, np.array(record.example, np.uint8))
        else:
            self._runs.client.log_artifact(self.run_id, str(path), record.folder)

    def _image(self, path: Path, record: records.Picture) -> None:
        """What MLflow's log_image does, under names that are the same again."""
        assert self.run_id is not None
        name = f"{record.image}+step+{record.step}+timestamp+{record.time}+{path.parent.name}"
        with Image.open(path) as picture:
            picture.save(whole := path.with_name(f"{name}.png"))
            ImageOps.contain(picture, PREVIEW).save(preview := path.with_name(f"{name}+compressed.webp"))
        for file in (whole, preview):
            self._runs.client.log_artifact(self.run_id, str(file), "images")
        self._runs.client.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, "True")
