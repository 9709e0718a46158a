"""Carrying a study out: Optuna's storage and sampler, the objective of a trial, and the loop of a worker."""

import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from elbolab import sqlite
from elbolab.checkpoint import load_checkpoint
from elbolab.config import EvaluateConfig
from elbolab.errors import UserError
from elbolab.evaluators import Subject
from elbolab.evaluators.importance import mean_log_px
from elbolab.experiment import prepare
from elbolab.mirror import DIED, FAILURE, INTERRUPTED, SURPLUS, Mirror
from elbolab.trainer import Event, train
from elbolab.tuning import Study

GRACE = 4
POLL_SECONDS = 0.5
FAILURES_IN_A_ROW = 10
DEFINITION = "definition"


@dataclass(frozen=True)
class Job:
    """A study to carry out, as a worker in any process on any machine needs to know it."""

    name: str
    study: Study
    storage: str
    target: int
    seed: int
    heartbeat: int


class SeededSampler(BaseSampler):
    """A sampler made anew for each trial, seeded by (``seed``, the trial's number).

    Whoever works on a trial, and however often the study was stopped, equal results before it give equal suggestions.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def open_study(job: Job) -> tuple[optuna.Study, bool]:
    """Optuna's study of ``job``, and whether it was made by this call.

    Raises UserError where the storage is out of reach, or holds a study of this name with another definition.
    """
    # Each trial has a line here, and a traceback where one is due.
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    kwargs = {"connect_args": {"timeout": 60}} if job.storage.startswith(sqlite.PREFIX) else {"pool_pre_ping": True}
    try:
        with sqlite.first_use(job.storage), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = _once_more(
                lambda: RDBStorage(
                    job.storage,
                    engine_kwargs=kwargs,
                    heartbeat_interval=job.heartbeat,
                    grace_period=GRACE * job.heartbeat,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
                )
            )
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"storage={job.storage!r} cannot be opened: {reason}; name a database that can") from error
    options: dict[str, Any] = {"storage": storage, "sampler": _sampler(job), "pruner": _pruner(job.study)}
    definition = job.study.model_dump_json(exclude={"trials"})
    try:
        study = optuna.create_study(study_name=job.name, directions=job.study.directions, **options)
        study.set_user_attr(DEFINITION, definition)
        return study, True
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=job.name, **options)
    if study.user_attrs.get(DEFINITION, definition) != definition:
        raise UserError(
            f"study {job.name!r} was begun on {job.storage} with another definition; rename its file, or name another "
            "storage"
        )
    return study, False


def _once_more(make: Callable[[], RDBStorage]) -> RDBStorage:
    """``make`` anew where another process made the same tables at the same moment."""
    try:
        return make()
    except SQLAlchemyError:
        time.sleep(1)
        return make()


def _sampler(job: Job) -> BaseSampler:
    if job.study.configs:
        points = {name: list(getattr(wide, "choices", ())) for name, wide in job.study.space.items()}
        return GridSampler(points, seed=job.seed)
    return SeededSampler(lambda seed: TPESampler(seed=seed), job.seed)


def _pruner(study: Study) -> BasePruner:
    kind = study.pruner or ("none" if study.configs or len(study.metrics) > 1 else "median")
    epochs = study.config_of({} if study.search else {"config": 0, "seed": study.seeds[0]}).epochs
    if kind == "median":
        return MedianPruner(n_warmup_steps=epochs // 3)
    return HyperbandPruner(min_resource=1, max_resource=epochs) if kind == "hyperband" else NopPruner()


class Objective:
    """One training judged on the validation split; what it reports of itself goes to Optuna and to MLflow."""

    def __init__(self, job: Job, mirror: Mirror) -> None:
        self._job = job
        self._mirror = mirror
        self.number: int | None = None

    def __call__(self, trial: optuna.Trial) -> list[float]:
        self.number = trial.number
        earlier = [one for one in trial.study.get_trials(deepcopy=False) if one.number < trial.number]
        if len(ended(earlier, self._job.study)) + len(_coming(earlier)) >= self._job.target:
            # Another worker asked for the last trial at the same moment.
            trial.set_user_attr(FAILURE, SURPLUS)
            raise UserError(SURPLUS)
        try:
            return self._train(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            reason = INTERRUPTED if stopped else f"{type(error).__name__}: {error}"[:500]
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(FAILURE, reason)
            if not stopped and not isinstance(error, UserError):
                traceback.print_exc()
            # Optuna fails a trial for the other exceptions, but would leave it running for this one.
            if isinstance(error, SystemExit):
                trial.study.tell(trial, state=TrialState.FAIL)
            raise

    def _train(self, trial: optuna.Trial) -> list[float]:
        study = self._job.study
        config = study.suggest(trial)
        model, data, tags = prepare(study.model, config)
        data = data.without_test()
        self._mirror.open(trial.number, trial.datetime_start, {"model": study.model, **config.params()}, tags)
        last: dict[str, float] = {}

        def report(event: Event) -> None:
            last.update(event.metrics)
            if "val/kl" in last:
                # The rate-distortion plane of Alemi et al. 2018: -ELBO = distortion + rate, and the rate is the KL.
                last["val/distortion"] = -last["val/elbo"] - last["val/kl"]
            self._mirror.report(trial.number, last, event.epoch)
            if len(study.metrics) == 1:
                trial.report(last[study.epoch_metric], event.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"epoch {event.epoch}")

        with TemporaryDirectory() as folder:
            train(model, data, report, Path(folder))
            if "val/log_px" in study.metrics:
                best = load_checkpoint(Path(folder, "best.safetensors"), model.device)
                judged = Subject(best, data, EvaluateConfig(samples=study.samples, images=study.images))
                last["val/log_px"] = mean_log_px(judged, "val")
        values = [last[metric] for metric in study.metrics]
        if not all(map(math.isfinite, values)):
            raise UserError(f"{', '.join(study.metrics)} came out as {values}")
        return values


def ended(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """The trials that count: finished or pruned, and of a list also those that failed and are not tried again."""
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    return [
        trial
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (study.configs and trial.state == TrialState.FAIL and trial.number not in again and not _surplus(trial))
    ]


def _coming(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if not trial.state.is_finished()]


def _surplus(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(FAILURE) == SURPLUS


def work(job: Job, parent: str, limit: int | None = None) -> None:
    """Work on trials until the study has its ``target`` of them, or until ``limit`` of them were this worker's.

    Any number of workers may do so at once, wherever they are: the trials that are under way elsewhere are waited for,
    since the retry of one whose worker dies must find somebody. Raises UserError when every trial fails.
    """
    study, _ = open_study(job)
    mirror = Mirror(job.name, job.study, parent)
    done = 0
    while limit is None or done < limit:
        if (boss := parent_process()) is not None and not boss.is_alive():
            return
        _fail_dead_trials(study, job, mirror)
        trials = study.get_trials(deepcopy=False)
        _refuse_hopeless(trials)
        missing = job.target - len(ended(trials, job.study))
        if missing <= 0:
            return
        coming = _coming(trials)
        if len(coming) < missing or any(trial.state == TrialState.WAITING for trial in coming):
            _run_one(study, job, mirror)
            done += 1
        else:
            time.sleep(POLL_SECONDS)


def _run_one(study: optuna.Study, job: Job, mirror: Mirror) -> None:
    def tell(study: optuna.Study, trial: FrozenTrial) -> None:
        if not _surplus(trial):
            mirror.close(trial)
            print(_line(study, job, trial), file=sys.stderr, flush=True)

    objective = Objective(job, mirror)
    try:
        study.optimize(objective, n_trials=1, catch=(Exception,), callbacks=[tell])
    except BaseException as error:
        if objective.number is None:
            raise
        trial = study.get_trials(deepcopy=False)[objective.number]
        mirror.close(trial)
        if trial.user_attrs.get(FAILURE) == INTERRUPTED:
            # The next start of the study takes it up again.
            _queue_again(study, trial)
        # Optuna raises when it is told of a trial that others have failed since: this process slept too long.
        if not isinstance(error, Exception) or trial.state != TrialState.FAIL or FAILURE in trial.user_attrs:
            raise
        print(f"trial {trial.number}: {DIED} for too long, and others have failed it", file=sys.stderr, flush=True)


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    trial = deepcopy(trial)
    trial.user_attrs = {name: value for name, value in trial.user_attrs.items() if name != FAILURE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, trial)


def _fail_dead_trials(study: optuna.Study, job: Job, mirror: Mirror) -> None:
    """Fail the trials whose worker died, let Optuna queue their retry, and close their runs."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    for trial in running:
        # A worker that died before its first heartbeat, which comes before the first parameter, never goes stale.
        assert trial.datetime_start is not None
        age = datetime.now() - trial.datetime_start
        if not trial.params and age > timedelta(seconds=GRACE * job.heartbeat):
            with suppress(ValueError, UpdateFinishedTrialError):
                study.tell(trial.number, state=TrialState.FAIL)
    for trial in running:
        now = study.get_trials(deepcopy=False)[trial.number]
        if now.state == TrialState.FAIL and FAILURE not in now.user_attrs:
            mirror.close(now)


def _refuse_hopeless(trials: list[FrozenTrial]) -> None:
    own = [trial for trial in trials if trial.state.is_finished() and not _surplus(trial)][-FAILURES_IN_A_ROW:]
    reasons = [trial.user_attrs.get(FAILURE, DIED) for trial in own if trial.state == TrialState.FAIL]
    if len(reasons) == FAILURES_IN_A_ROW and INTERRUPTED not in reasons:
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
