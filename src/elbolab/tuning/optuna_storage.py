"""Optuna's side of a study: its database, sampler and pruner, and which of its trials count."""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, OptunaError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError

from elbolab.config import version_0_1_0
from elbolab.models import MODELS
from elbolab.support import sqlite
from elbolab.support.databases import refuse_foreign
from elbolab.support.errors import UserError, reason
from elbolab.support.user_code import Source, digest_of
from elbolab.tracking.keys import FAILURE
from elbolab.training.schedule import fewest_epochs
from elbolab.tuning.study import Study

METHOD, DEFAULTS, DIGEST, CODE = "method", "defaults", "digest", "code"
# System attributes of a queued trial that name the trials that it replaces; the first is Optuna's.
AGAIN = ("retry_history", "interrupted")
GRACE = 4
RETRY_COMES_WITHIN = timedelta(seconds=5)
# Why a trial failed, as its attribute FAILURE says; without one its worker died.
SURPLUS, INTERRUPTED, DIED = "not needed: the study was complete", "interrupted", "its worker gave no sign of life"
SILENT = text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' "
    "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
)


class Storage(RDBStorage):
    """Optuna's storage, where a trial without any heartbeat becomes stale, and a heartbeat that fails is not the last.

    Optuna leaves such a trial running for ever, and writes no heartbeat after one that failed.
    """

    _silent_since: Mapping[int, float] = MappingProxyType({})

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (OptunaError, SQLAlchemyError) as error:
            print(f"a heartbeat was not written: {reason(error)}", file=sys.stderr, flush=True)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """The trials of workers whose heartbeats ended, and of those that died before their first."""
        with self.engine.connect() as connection:
            silent = {trial_id for (trial_id,) in connection.execute(SILENT, {"study": study_id})}
        # By the clock of this process, since those of several machines differ.
        now = time.monotonic()
        self._silent_since = {trial_id: self._silent_since.get(trial_id, now) for trial_id in silent}
        assert self.grace_period is not None
        dead = [trial_id for trial_id, since in self._silent_since.items() if now - since > self.grace_period]
        return super()._get_stale_trial_ids(study_id) + dead


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """The database at ``url``, made where there is none; raises UserError where it cannot be opened."""
    is_file = url.startswith(sqlite.PREFIX)
    try:
        with sqlite.first_use(url), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            refuse_foreign(url, "version_info", "Optuna")
            make = partial(
                Storage,
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if is_file else {"pool_pre_ping": True},
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
            )
            try:
                storage = make()
            except SQLAlchemyError:
                # Another worker was making the same tables at the same moment.
                time.sleep(1)
                storage = make()
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"storage={url!r} cannot be opened: {reason(error)}; name a database that can") from error
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        remedy = reason(error).replace("$ ", "").replace("$STORAGE_URL", url)
        raise UserError(f"storage={url!r}: {remedy} Copy the database before, or name another one") from error
    if is_file:
        # In WAL mode this costs no commit when a process dies, and spares each a wait for the disk.
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
        storage.engine.dispose()
    return storage


@dataclass(frozen=True)
class Job:
    """A study to carry out, as a worker in any process on any machine needs to know it."""

    name: str
    study: Study
    storage: str
    target: int
    seed: int
    heartbeat: int
    population: int = 1
    digest: str | None = None
    """Of the data; None where no trial is trained."""


class SeededSampler(TPESampler):
    """TPE made anew for each trial, seeded by (``seed``, the trial's place in the study).

    Whoever works on a trial, and however often the study was stopped, equal results before it give equal suggestions.
    """

    def __init__(self, seed: int, study: optuna.Study) -> None:
        super().__init__(seed=seed)
        self._study_seed = seed
        # The whole study: Hyperband shows a sampler only the trials of one bracket, whose places would be those of
        # another's.
        self._study = study

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        trials = self._study.get_trials(deepcopy=False)
        place = sum(one.number < trial.number for one in standing(trials))
        # Anew, since what was drawn for other trials would change what is drawn for this one.
        super().__init__(seed=int(np.random.SeedSequence([self._study_seed, place]).generate_state(1)[0]))
        super().before_trial(study, trial)


def method_of(study: optuna.Study) -> Literal["auto", "importance"]:
    """How log p(x) is estimated in every trial of a study: as it was when the study began."""
    # Studies of 0.1.0 do not say it.
    return study.user_attrs.get(METHOD, "importance")


def open_study(job: Job, begin: bool = True) -> tuple[optuna.Study, bool]:
    """Optuna's study of ``job``, and whether it was made by this call, which makes none unless it may ``begin`` one.

    Raises UserError where the storage cannot be opened, or has no such study, or one that was begun otherwise.
    """
    # Each trial has a line here, and a traceback where one is due.
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage = open_storage(job.storage, job.heartbeat)
    options: dict[str, Any] = {"study_name": job.name, "storage": storage, "pruner": _pruner(job.study)}
    is_new = False
    if begin:
        with suppress(DuplicatedStudyError):
            optuna.create_study(directions=job.study.directions, **options)
            is_new = True
    try:
        study = optuna.load_study(**options)
    except KeyError:
        raise UserError(f"study {job.name!r} has not begun on {job.storage}; carry it out first") from None
    study.sampler = SeededSampler(job.seed, study)
    begun = {"definition": job.study.model_dump_json(exclude={"trials"}), "heartbeat": job.heartbeat}
    today = MODELS[job.study.model].Config().model_dump(mode="json", exclude={"data_dir"})
    if is_new:
        study.set_user_attr(METHOD, "auto")
        study.set_user_attr(DEFAULTS, today)
        study.set_user_attr(CODE, digest_of(job.study.code))
    refuse_other_code(job.name, study, job.study.code)
    # The trials of a study that goes on are trained by the defaults with which it began.
    then = version_0_1_0.with_depth(study.user_attrs.get(DEFAULTS) or version_0_1_0.defaults(today))
    job.study.defaults.update({key: value for key, value in then.items() if key in today and value != today[key]})
    for key, value in begun.items():
        if is_new:
            study.set_user_attr(key, value)
        elif study.user_attrs.get(key, value) != value:
            other = "another definition" if key == "definition" else f"{key}={study.user_attrs[key]}"
            raise UserError(
                f"study {job.name!r} was begun on {job.storage} with {other}; go on with that, or rename its file, or "
                "name another storage"
            )
    if job.digest is not None:
        # Studies of earlier versions do not say it.
        if DIGEST not in study.user_attrs:
            study.set_user_attr(DIGEST, job.digest)
        refuse_other_data(job, study, job.digest)
    return study, is_new


class OtherDataError(UserError):
    """The data, or the code of the user's own model, are others than when the study began."""


def refuse_other_code(name: str, study: optuna.Study, code: Mapping[str, Source]) -> None:
    """Raise OtherDataError where ``code`` is not that with which the study ``name`` began."""
    if (now := digest_of(code)) != (then := study.user_attrs.get(CODE, "")):
        files = ", ".join(sorted(source.file for source in code.values()))
        raise OtherDataError(
            f"{files} has the digest {now} now and had {then} when study {name!r} began; bring back the code of then, "
            "or rename the study's file, or name another storage"
        )


def refuse_other_data(job: Job, study: optuna.Study, digest: str) -> None:
    """Raise OtherDataError where ``digest`` is not that of the data with which the study began."""
    if digest != (then := study.user_attrs[DIGEST]):
        raise OtherDataError(
            f"{job.study.any_config.dataset} has the digest {digest} now and had {then} when study {job.name!r} began; "
            "bring back the files of then, or rename the study's file, or name another storage"
        )


def _pruner(study: Study) -> BasePruner:
    kind = study.stops_by
    config = study.any_config
    if kind == "median":
        return MedianPruner(n_warmup_steps=fewest_epochs(config) // 3)
    return HyperbandPruner(min_resource=1, max_resource=config.epochs) if kind == "hyperband" else NopPruner()


def standing(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that no other replaces: not those that were queued again, nor those that nobody needed."""
    replaced = {number for trial in trials for key in AGAIN for number in trial.system_attrs.get(key, ())}
    return [trial for trial in trials if trial.number not in replaced and trial.user_attrs.get(FAILURE) != SURPLUS]


def retry_due(trials: Sequence[FrozenTrial]) -> bool:
    """Whether a worker died so lately that its trial has failed and Optuna has not yet queued the retry.

    Optuna does so in two transactions; whoever does it may die between them, and then no retry comes.
    """
    now = datetime.now()
    return any(
        trial.state == TrialState.FAIL
        and not trial.user_attrs.get(FAILURE)
        and not trial.system_attrs.get(AGAIN[0])
        and trial.datetime_complete is not None
        and abs(now - trial.datetime_complete) < RETRY_COMES_WITHIN
        for trial in standing(trials)
    )


def ended(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """The trials that count: finished or pruned, and of a list also those that failed for good."""
    counting = [TrialState.COMPLETE, TrialState.PRUNED] + [TrialState.FAIL] * bool(study.configs)
    return [trial for trial in standing(trials) if trial.state in counting]
