"""MLflow's mirror of a study: a parent run, and under it one run a trial. Optuna is the authority on both."""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path

import optuna
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from optuna.trial import FrozenTrial, TrialState

from elbolab.models import MODELS, params_of
from elbolab.support.errors import UserError, reason
from elbolab.tracking.keys import FAILED, FAILURE, FINISHED, KILLED, KIND, PARENT, STUDY, TRIAL
from elbolab.tracking.mlflow_reader import address
from elbolab.tracking.mlflow_writer import MlflowRuns
from elbolab.tracking.moved_folders import refuse_moved
from elbolab.tracking.run import code_tags
from elbolab.tuning.optuna_storage import DIED, SURPLUS
from elbolab.tuning.plots import draw_study
from elbolab.tuning.study import Study

# User attributes of a study: the run that mirrors it, and those that did on other servers.
RUN_OF_STUDY, EARLIER_RUNS = "mlflow_run", "mlflow_runs_before"
STATUS = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: KILLED, TrialState.FAIL: FAILED}
SECONDS_TO_MAKE_THE_PARENT = 30


def parent_of(study: optuna.Study, created: bool, anew: bool = False) -> str | None:
    """Id of the run that mirrors ``study``; None where the caller is to make it, having ``created`` the study.

    So is one that the present server does not have, where it may be made ``anew``; otherwise this raises UserError.
    """
    for _ in range(0 if created else SECONDS_TO_MAKE_THE_PARENT):
        if RUN_OF_STUDY in study.user_attrs:
            break
        time.sleep(1)
    name, known = study.study_name, _runs_of(study)
    for run_id in known:
        try:
            found = MlflowRuns().client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                continue
            line = f"study {name!r} is mirrored by run {run_id}, which cannot be read from {address()}"
            raise UserError(f"{line}: {error.message}; set MLFLOW_TRACKING_URI to its server") from error
        if found.lifecycle_stage == "deleted":
            restore = f"mlflow runs restore --run-id {run_id}"
            raise UserError(f"study {name!r} is mirrored by run {run_id}, which is deleted; `{restore}` brings it back")
        refuse_moved(str(found.artifact_uri))
        return run_id
    if known and not anew:
        raise UserError(
            f"study {name!r} is mirrored by run {known[0]}, which is not on {address()}; set MLFLOW_TRACKING_URI to "
            f"its server, or, where that run is lost, have `elbolab study {name} --sync` mirror the study here"
        )
    return None


def set_parent(study: optuna.Study, run_id: str) -> None:
    """Note the run that mirrors a study from now on."""
    study.set_user_attr(EARLIER_RUNS, _runs_of(study))
    study.set_user_attr(RUN_OF_STUDY, run_id)


def _runs_of(study: optuna.Study) -> list[str]:
    """The runs that mirror a study, each on another server, the newest first."""
    attrs = study.user_attrs
    return [attrs[RUN_OF_STUDY], *attrs.get(EARLIER_RUNS, ())] if RUN_OF_STUDY in attrs else []


class Mirror:
    """Writes the trials of one study to MLflow; where the server does not answer it prints a line, no error."""

    def __init__(self, name: str, study: Study, parent: str) -> None:
        self._name = name
        self._study = study
        self._parent = parent
        self._runs = MlflowRuns()
        self._open: dict[int, str] = {}

    def open(self, number: int, started: datetime | None, params: dict[str, str], tags: dict[str, str]) -> None:
        """Begin the run of a trial."""
        with self._tolerant(f"trial {number}"):
            self._open[number] = self._create(number, started, params, self._code | tags)

    def report(self, number: int, metrics: dict[str, float], epoch: int, tags: dict[str, str] | None = None) -> None:
        """Log an epoch of a trial."""
        if number in self._open:
            with self._tolerant(f"trial {number}"):
                self._log(self._open[number], metrics, epoch, tags)

    def close(self, trial: FrozenTrial) -> None:
        """Give the run of an ended trial Optuna's values and state; a run that is not there is made."""
        if trial.state not in STATUS:
            return
        with self._tolerant(f"trial {trial.number}"):
            if (run_id := self._open.pop(trial.number, None)) is None:
                self._correct(self._find({TRIAL: str(trial.number)}).get(trial.number, []), trial)
            else:
                self._end(run_id, trial, self._missing_values({}, trial))

    @cached_property
    def _code(self) -> dict[str, str]:
        # To ask git takes longer than some trials.
        return code_tags()

    @cached_property
    def _experiment(self) -> str:
        return self._runs.client.get_run(self._parent).info.experiment_id

    def sync(self, study: optuna.Study) -> int:
        """Make MLflow equal to Optuna, one run a trial; returns how many trials were corrected. Idempotent."""
        corrected = 0
        with self._tolerant("the study"):
            runs = self._find({})
            for trial in study.get_trials(deepcopy=False):
                corrected += self._correct(runs.get(trial.number, []), trial)
        return corrected

    def draw(self, study: optuna.Study) -> None:
        """Log the table of the trials and the figures of the study on the parent run."""
        with self._tolerant("the figures of the study"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trials.csv")
            study.trials_dataframe().to_csv(path, index=False)
            self._runs.client.log_artifact(self._parent, str(path))
            for figure in draw_study(study, self._study.metrics, Path(folder)):
                self._runs.client.log_artifact(self._parent, str(figure), "figures")

    def _find(self, tags: dict[str, str]) -> dict[int, list[Run]]:
        """The runs of the trials with these tags, by number, the oldest first."""
        found: dict[int, list[Run]] = defaultdict(list)
        for run in self._runs.find(self._experiment, {PARENT: self._parent, KIND: "trial", **tags}):
            found[int(run.data.tags[TRIAL])].append(run)
        return found

    def _correct(self, runs: list[Run], trial: FrozenTrial) -> bool:
        """Leave one run of an ended trial, with its values and state; returns whether anything had to be done."""
        if trial.state not in STATUS or trial.user_attrs.get(FAILURE) == SURPLUS:
            return False
        params = self._params(trial)
        if (run := self._runs.keep_one(runs)) is None:
            run = self._runs.client.get_run(self._create(trial.number, trial.datetime_start, params, {}))
        missing = self._missing_values(run.data.metrics, trial)
        # An outage leaves out all epochs from one on.
        steps = [item.step for item in run.data.to_proto().metrics if item.key == self._study.epoch_metric]
        last = max(steps, default=0)
        epochs = {epoch: value for epoch, value in trial.intermediate_values.items() if epoch > last}
        params = {key: value for key, value in params.items() if key not in run.data.params}
        if len(runs) == 1 and not missing and not epochs and not params and run.info.status == STATUS[trial.state]:
            return False
        now = int(time.time() * 1000)
        values = [(self._study.epoch_metric, value, now, epoch) for epoch, value in epochs.items()]
        self._runs.log(run.info.run_id, values, params)
        self._end(run.info.run_id, trial, missing)
        return True

    def _missing_values(self, metrics: dict[str, float], trial: FrozenTrial) -> dict[str, float]:
        """What a finished trial was judged by, where its run has it not yet."""
        if trial.state != TrialState.COMPLETE:
            return {}
        keys = [metric.replace("val/", "objective/") for metric in self._study.metrics]
        return {key: value for key, value in zip(keys, trial.values, strict=True) if metrics.get(key) != value}

    def _end(self, run_id: str, trial: FrozenTrial, missing: dict[str, float]) -> None:
        tags = {"pruned": "true"} if trial.state == TrialState.PRUNED else {}
        if trial.state == TrialState.FAIL:
            tags[FAILURE] = str(trial.user_attrs.get(FAILURE, DIED))
        if missing or tags:
            self._log(run_id, missing, trial.last_step or 0, tags)
        self._runs.client.set_terminated(run_id, STATUS[trial.state], _milliseconds(trial.datetime_complete))

    def _params(self, trial: FrozenTrial) -> dict[str, str]:
        known = trial.params.keys() == self._study.space.keys()
        kind = MODELS[self._study.model]
        if known:
            return params_of(kind, self._study.config_of(trial.params))
        return {"model": MODELS.name_of(kind), **{name: str(value) for name, value in trial.params.items()}}

    def _create(self, number: int, started: datetime | None, params: dict[str, str], tags: dict[str, str]) -> str:
        own = {KIND: "trial", PARENT: self._parent, STUDY: self._name, TRIAL: str(number)}
        client, name = self._runs.client, f"{self._name}-{number}"
        run = client.create_run(self._experiment, _milliseconds(started), own | tags, name)
        self._runs.log(run.info.run_id, params=params)
        return run.info.run_id

    def _log(self, run_id: str, metrics: dict[str, float], step: int, tags: dict[str, str] | None = None) -> None:
        now = int(time.time() * 1000)
        self._runs.log(run_id, [(key, value, now, step) for key, value in metrics.items()], tags=tags or {})

    @contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            # What is half written is completed from Optuna by --sync.
            self._open.clear()
            print(
                f"{what}: not on {address()} ({reason(error)}); the study "
                f"goes on, and `elbolab study {self._name} --sync` brings MLflow up to date",
                file=sys.stderr,
                flush=True,
            )


def _milliseconds(moment: datetime | None) -> int:
    return int((moment.timestamp() if moment else time.time()) * 1000)
