"""Carrying a study out: a trial as a training that is judged, and the loop of a worker."""

import gc
import math
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from elbolab.config.schema import EvaluateConfig
from elbolab.evaluation import Evaluation
from elbolab.evaluation.likelihood import mean_log_px
from elbolab.evaluation.metrics import LOG_PX, PARETO_K, is_doubtful
from elbolab.experiment.train import prepare
from elbolab.models import params_of
from elbolab.support.errors import UserError, redacted
from elbolab.support.number_formats import dagger
from elbolab.support.random_streams import own_stream
from elbolab.support.signals import postponed
from elbolab.tracking.keys import CONVERGED, FAILURE, LAST_EPOCH
from elbolab.training.backend import Backend
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.populations import take_turns
from elbolab.training.trainer import Event, train
from elbolab.tuning.mlflow_mirror import Mirror
from elbolab.tuning.optuna_storage import (
    AGAIN,
    DIED,
    INTERRUPTED,
    SURPLUS,
    Job,
    OtherDataError,
    ended,
    method_of,
    open_study,
    refuse_other_code,
    refuse_other_data,
    retry_due,
    standing,
)
from elbolab.tuning.study import with_distortion

POLL_SECONDS = 0.5
FAILURES_IN_A_ROW = 10
# What ends a worker, and has the trial under way queued again.
STOPS = (KeyboardInterrupt, SystemExit, OtherDataError)
TRUST = (PARETO_K.at("val"), f"val/{LOG_PX.doubt}")
# User attribute of a trial whose log p(x) is not to be trusted.
UNRELIABLE = "unreliable"


def _train_and_judge(job: Job, mirror: Mirror, trial: optuna.Trial, backend: Backend) -> list[float]:
    """Train a trial and return what it is judged by, having told Optuna and MLflow of each epoch.

    Raises TrialPruned where the pruner wants no more of it, and _SurplusError where the study needs none of it.
    """
    study = job.study
    with _heartbeats(job, trial):
        _refuse_surplus(job, trial)
        config = study.suggest(trial)
        model, data, tags = prepare(study.model, config, backend)
        refuse_other_data(job, trial.study, data.spec.digest)
        refuse_other_code(job.name, trial.study, model.code)
        data = data.without_test()
        params = params_of(type(model), config)
        mirror.open(trial.number, trial.datetime_start, params, tags)
        judged: dict[str, float] = {}
        last = 0

        def report(event: Event) -> None:
            nonlocal last
            last, metrics = event.epoch, with_distortion(event.metrics)
            over = {} if event.converged is None else {CONVERGED: str(event.converged).lower(), LAST_EPOCH: str(last)}
            mirror.report(trial.number, metrics, last, over)
            # A front is that of trainings, and one metric that of the model which a training leaves, its best epoch.
            if event.best or len(study.metrics) > 1:
                judged.update(metrics)
            if len(study.metrics) == 1:
                trial.report(metrics[study.epoch_metric], event.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"epoch {event.epoch}")

        with TemporaryDirectory() as folder:
            train(model, data, report, Path(folder), backend)
            if LOG_PX.at("val") in study.metrics:
                best = load_checkpoint(Path(folder, "best.safetensors"), model.device)
                evaluation = Evaluation(
                    best,
                    data,
                    EvaluateConfig(method=method_of(trial.study), samples=study.samples, images=study.images),
                )
                with postponed() as interruption, interruption.at_once():
                    judged |= (found := mean_log_px(evaluation, "val"))
                # A tracking server keeps no figure that is not finite, such as the k of too few samples.
                trust = {key: found[key] for key in TRUST if math.isfinite(found.get(key, math.nan))}
                mirror.report(trial.number, trust, last)
                if is_doubtful(found, LOG_PX.at("val")):
                    trial.set_user_attr(UNRELIABLE, True)
        values = [judged[metric] for metric in study.metrics]
        if not all(map(math.isfinite, values)):
            raise UserError(f"{', '.join(study.metrics)} came out as {values}")
        return values


@contextmanager
def _heartbeats(job: Job, trial: optuna.Trial) -> Iterator[None]:
    """Tell the study's storage that the trial lives, as Optuna's own loop would."""
    storage: Any = trial.storage
    study_id = storage.get_study_id_from_name(job.name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    over = threading.Event()

    def beat() -> None:
        storage.record_heartbeat(trial_id)
        while not over.wait(job.heartbeat):
            storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _refuse_surplus(job: Job, trial: optuna.Trial) -> None:
    """Another worker may have asked for the last trial at the same moment: the one of lower number goes on.

    One that is queued again goes before a new one, which was asked for while another worker was about to queue it.
    """
    while retry_due(trials := trial.study.get_trials(deepcopy=False)):
        time.sleep(POLL_SECONDS)
    before = [one for one in trials if one.state == TrialState.RUNNING and one.number < trial.number]
    if not _was_queued(trials[trial.number]):
        before += [one for one in trials if one.state == TrialState.WAITING and one.system_attrs.keys() & set(AGAIN)]
    if len(ended(trials, job.study)) + len(before) >= job.target:
        raise _SurplusError


class _SurplusError(Exception):
    """The study has all its trials without this one."""


def _reason(error: BaseException) -> str:
    if isinstance(error, STOPS):
        return INTERRUPTED
    if isinstance(error, _SurplusError):
        return SURPLUS
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
        if (process := parent_process()) is not None and not process.is_alive():
            return
        trials = study.get_trials(deepcopy=False)
        if running := [trial for trial in trials if trial.state == TrialState.RUNNING]:
            _fail_dead_trials(study, mirror, running)
            trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        missing = job.target - len(ended(trials, job.study))
        if missing <= 0:
            return
        refuse_hopeless(trials[first:])
        if (count := min(missing - len(running), job.population)) > 0:
            _run(study, job, mirror, count)
            done += count
        else:
            time.sleep(POLL_SECONDS)


def _run(study: optuna.Study, job: Job, mirror: Mirror, count: int) -> None:
    """Carry ``count`` trials out beside each other; an interruption and other data queue those under way again."""
    with warnings.catch_warnings():
        # Optuna misses the heartbeats of its own loop; each training has one here.
        warnings.simplefilter("ignore", UserWarning)
        under_way = {place: study.ask() for place in range(count)}
    storage = under_way[0].storage
    try:
        trainings = [partial(_train_and_judge, job, mirror, trial) for trial in under_way.values()]
        with own_stream(), closing(take_turns(trainings)) as outcomes:
            for place, outcome in outcomes:
                _end(study, job, mirror, under_way.pop(place), outcome)
                if isinstance(outcome, STOPS):
                    raise outcome
    except STOPS as error:
        for trial in under_way.values():
            _end(study, job, mirror, trial, error)
        raise
    finally:
        storage.remove_session()


def _end(
    study: optuna.Study, job: Job, mirror: Mirror, trial: optuna.Trial, outcome: list[float] | BaseException
) -> None:
    """Tell Optuna, MLflow and the reader what became of a trial."""
    if isinstance(outcome, optuna.TrialPruned):
        now = study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    elif isinstance(outcome, BaseException):
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(FAILURE, _reason(outcome))
        if not isinstance(outcome, (UserError, _SurplusError, *STOPS)):
            traceback.print_exception(outcome)
        now = study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    else:
        now = study.tell(trial, outcome, skip_if_finished=True)

    reason = now.user_attrs.get(FAILURE)
    # One that was queued keeps its place there, and one that was interrupted is taken up at the next start.
    if reason == INTERRUPTED or (reason == SURPLUS and _was_queued(now)):
        _queue_again(study, now)
    if reason == SURPLUS:
        return
    mirror.close(now)
    if now.state == TrialState.FAIL and reason is None:
        # This process slept too long.
        print(f"trial {now.number}: {DIED} for too long, and others have failed it", file=sys.stderr, flush=True)
    elif reason != INTERRUPTED:
        print(_line(study, job, now), file=sys.stderr, flush=True)
    if now.state == TrialState.FAIL and isinstance(outcome, Exception):
        # It holds on to the frames of the training, and they to its memory on the device.
        traceback.clear_frames(outcome.__traceback__)
        gc.collect()


def _was_queued(trial: FrozenTrial) -> bool:
    """Whether its parameters were there before it was asked for; of a trial that has suggested none yet."""
    return bool(trial.params) or "fixed_params" in trial.system_attrs


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


def refuse_hopeless(trials: list[FrozenTrial]) -> None:
    """Raise UserError where the newest of ``trials`` that ended have all failed, so many that others would."""
    last = [trial for trial in standing(trials) if trial.state.is_finished()][-FAILURES_IN_A_ROW:]
    reasons = [trial.user_attrs.get(FAILURE, DIED) for trial in last if trial.state == TrialState.FAIL]
    if len(reasons) == FAILURES_IN_A_ROW:
        raise UserError(f"the last {FAILURES_IN_A_ROW} trials failed, the newest for: {reasons[-1]}; mend the study")


def _line(study: optuna.Study, job: Job, trial: FrozenTrial) -> str:
    """What a person reads of a trial that ended."""
    number = len(ended(study.get_trials(deepcopy=False), job.study))
    if trial.state == TrialState.COMPLETE:
        values = zip(job.study.metrics, trial.values, strict=True)
        found = dagger(", ".join(f"{metric} {value:.4g}" for metric, value in values), UNRELIABLE in trial.user_attrs)
    else:
        found = trial.user_attrs.get(FAILURE, f"after epoch {trial.last_step}")
    return f"trial {trial.number} {trial.state.name.lower()}, {found} ({brief_params(trial)}); {number} of {job.target}"


def brief_params(trial: FrozenTrial) -> str:
    """The parameters of a trial in a line."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )
