"""Carrying a study out: the objective of a trial, and the loop of a worker."""

import gc
import math
import sys
import time
import traceback
import warnings
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from elbolab.checkpoint import load_checkpoint
from elbolab.config import EvaluateConfig
from elbolab.errors import UserError, redacted
from elbolab.evaluators import Subject
from elbolab.evaluators.likelihood import mean_log_px
from elbolab.experiment import prepare
from elbolab.mirror import DIED, INTERRUPTED, SURPLUS, Mirror
from elbolab.storage import Job, ended, open_study, standing
from elbolab.tracker import FAILURE
from elbolab.trainer import Event, train
from elbolab.tuning import with_distortion

POLL_SECONDS = 0.5
FAILURES_IN_A_ROW = 10


class Objective:
    """One training judged on the validation split; what it reports of itself goes to Optuna and to MLflow."""

    def __init__(self, job: Job, mirror: Mirror) -> None:
        self._job = job
        self._mirror = mirror
        self.number: int | None = None

    def __call__(self, trial: optuna.Trial) -> list[float]:
        self.number = trial.number
        try:
            self._refuse_surplus(trial)
            return self._train(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            reason = INTERRUPTED if stopped else SURPLUS if isinstance(error, _SurplusError) else _reason(error)
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(FAILURE, reason)
            if not stopped and not isinstance(error, UserError | _SurplusError):
                traceback.print_exc()
            # Optuna fails a trial for the other exceptions, but would leave it running for this one.
            if isinstance(error, SystemExit):
                trial.study.tell(trial, state=TrialState.FAIL)
            raise

    def _refuse_surplus(self, trial: optuna.Trial) -> None:
        """Another worker may have asked for the last trial at the same moment: the one of lower number goes on."""
        trials = trial.study.get_trials(deepcopy=False)
        before = [one for one in trials if one.state == TrialState.RUNNING and one.number < trial.number]
        if len(ended(trials, self._job.study)) + len(before) >= self._job.target:
            raise _SurplusError

    def _train(self, trial: optuna.Trial) -> list[float]:
        study = self._job.study
        config = study.suggest(trial)
        model, data, tags = prepare(study.model, config)
        data = data.without_test()
        self._mirror.open(trial.number, trial.datetime_start, {"model": study.model, **config.params()}, tags)
        judged: dict[str, float] = {}

        def report(event: Event) -> None:
            metrics = with_distortion(event.metrics)
            self._mirror.report(trial.number, metrics, event.epoch)
            # A front is that of trainings, and one metric that of the model which a training leaves, its best epoch.
            if event.best or len(study.metrics) > 1:
                judged.update(metrics)
            if len(study.metrics) == 1:
                trial.report(metrics[study.epoch_metric], event.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"epoch {event.epoch}")

        with TemporaryDirectory() as folder:
            train(model, data, report, Path(folder))
            if "val/log_px" in study.metrics:
                best = load_checkpoint(Path(folder, "best.safetensors"), model.device)
                subject = Subject(best, data, EvaluateConfig(samples=study.samples, images=study.images))
                judged["val/log_px"] = mean_log_px(subject, "val")
        values = [judged[metric] for metric in study.metrics]
        if not all(map(math.isfinite, values)):
            raise UserError(f"{', '.join(study.metrics)} came out as {values}")
        return values


class _SurplusError(Exception):
    """The study has all its trials without this one."""


def _reason(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {error}")[:500]


def work(job: Job, parent: str, limit: int | None = None) -> None:
    """Work on trials until the study has its ``target`` of them, or until ``limit`` of them were this worker's.

    Any number of workers may do so at once, wherever they are: the trials that are under way elsewhere are waited for,
    since the retry of one whose worker dies must find somebody. Raises UserError when every trial fails.
    """
    study, _ = open_study(job)
    mirror = Mirror(job.name, job.study, parent)
    first, done = len(study.get_trials(deepcopy=False)), 0
    while limit is None or done < limit:
        if (boss := parent_process()) is not None and not boss.is_alive():
            return
        trials = study.get_trials(deepcopy=False)
        if running := [trial for trial in trials if trial.state == TrialState.RUNNING]:
            _fail_dead_trials(study, mirror, running)
            trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        missing = job.target - len(ended(trials, job.study))
        if missing <= 0:
            return
        _refuse_hopeless(standing(trials[first:]))
        if len(running) < missing:
            _run_one(study, job, mirror)
            done += 1
        else:
            time.sleep(POLL_SECONDS)


def _run_one(study: optuna.Study, job: Job, mirror: Mirror) -> None:
    def tell(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.user_attrs.get(FAILURE) == SURPLUS:
            # One that was queued keeps its place there.
            if trial.params or "fixed_params" in trial.system_attrs:
                _queue_again(study, trial)
            return
        mirror.close(trial)
        print(_line(study, job, trial), file=sys.stderr, flush=True)
        if trial.state == TrialState.FAIL:
            # The exception holds on to the frames of the training, and they to its memory on the device.
            gc.collect()

    objective = Objective(job, mirror)
    try:
        study.optimize(objective, n_trials=1, catch=(Exception,), callbacks=[tell])
    except BaseException as error:
        if objective.number is None:
            raise
        trial = study.get_trials(deepcopy=False)[objective.number]
        if trial.user_attrs.get(FAILURE) == INTERRUPTED and trial.state == TrialState.FAIL:
            # The next start of the study takes it up again.
            _queue_again(study, trial)
        mirror.close(trial)
        # Optuna raises when it is told of a trial that others have failed since: this process slept too long.
        if not isinstance(error, Exception) or trial.state != TrialState.FAIL or FAILURE in trial.user_attrs:
            raise
        print(f"trial {trial.number}: {DIED} for too long, and others have failed it", file=sys.stderr, flush=True)


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was interrupted, which is no failure and costs no retry."""
    attrs = {**trial.system_attrs, "interrupted": [*trial.system_attrs.get("interrupted", ()), trial.number]}
    again = optuna.create_trial(
        state=TrialState.WAITING, params=trial.params, distributions=trial.distributions, system_attrs=attrs
    )
    study.add_trial(again)


def _fail_dead_trials(study: optuna.Study, mirror: Mirror, running: list[FrozenTrial]) -> None:
    """Fail the trials whose worker died, let Optuna queue their retry, and close their runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    for now in [trials[trial.number] for trial in running]:
        # A trial that failed by itself is closed by its own worker.
        if now.state == TrialState.FAIL and now.user_attrs.get(FAILURE, INTERRUPTED) == INTERRUPTED:
            mirror.close(now)


def _refuse_hopeless(trials: list[FrozenTrial]) -> None:
    last = [trial for trial in trials if trial.state.is_finished()][-FAILURES_IN_A_ROW:]
    reasons = [trial.user_attrs.get(FAILURE, DIED) for trial in last if trial.state == TrialState.FAIL]
    if len(reasons) == FAILURES_IN_A_ROW:
        raise UserError(f"the last {FAILURES_IN_A_ROW} trials failed, the newest for: {reasons[-1]}; mend the study")


def _line(study: optuna.Study, job: Job, trial: FrozenTrial) -> str:
    """What a person reads of a trial that ended."""
    number = len(ended(study.get_trials(deepcopy=False), job.study))
    if trial.state == TrialState.COMPLETE:
        values = zip(job.study.metrics, trial.values, strict=True)
        found = ", ".join(f"{metric} {value:.4g}" for metric, value in values)
    else:
        found = trial.user_attrs.get(FAILURE, f"after epoch {trial.last_step}")
    params = " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    return f"trial {trial.number} {trial.state.name.lower()}, {found} ({params}); {number} of {job.target}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
