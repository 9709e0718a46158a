"""What the tests of studies share: definitions, trials as Optuna has them and as MLflow has them, processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from elbolab.config.schema import StudyConfig
from elbolab.tracking.keys import FAILURE, PARENT, TRIAL
from elbolab.tuning.command import run_study
from elbolab.tuning.optuna_storage import SURPLUS

TINY = '"epochs": 2, "train_size": 40, "val_size": 10, "test_size": 10'
SEARCH = f"""
from elbolab import Study
STUDY = Study(model="vae", base={{{TINY}}}, search=["latent_dim", "beta", "lr"], metrics=["val/elbo"], trials=4)
"""


def define(store: Path, name: str, text: str) -> str:
    (store / "studies").mkdir(exist_ok=True)
    (store / "studies" / f"{name}.py").write_text(text)
    return name


def carry_out(name: str, **values: Any) -> str:
    return run_study(name, StudyConfig.parse(values))


def trials_of(name: str, storage: str = "sqlite:///optuna.db") -> list[optuna.trial.FrozenTrial]:
    # A pool would keep a connection open for every look, and a server takes a hundred.
    unpooled = RDBStorage(storage, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name=name, storage=unpooled).trials


def needed(name: str, storage: str = "sqlite:///optuna.db") -> list[optuna.trial.FrozenTrial]:
    """All but those that two workers asked for at the same moment, of which the study needed one."""
    return [trial for trial in trials_of(name, storage) if trial.user_attrs.get(FAILURE) != SURPLUS]


def children(parent: str) -> dict[int, Run]:
    experiment = mlflow.MlflowClient().get_run(parent).info.experiment_id
    found = mlflow.MlflowClient().search_runs([experiment], f"tags.`{PARENT}` = '{parent}' and tags.`{TRIAL}` != ''")
    by_number = {int(run.data.tags[TRIAL]): run for run in found if run.data.tags["elbolab.kind"] == "trial"}
    assert len(by_number) == len([run for run in found if run.data.tags["elbolab.kind"] == "trial"])
    return by_number


def begin(store: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "elbolab", "study", *arguments],
        cwd=store,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def running(name: str, storage: str = "sqlite:///optuna.db") -> bool:
    try:
        return any(
            trial.state == TrialState.RUNNING and trial.intermediate_values for trial in trials_of(name, storage)
        )
    except (KeyError, optuna.exceptions.OptunaError):
        return False


def all_under_way(count: int, name: str, storage: str = "sqlite:///optuna.db") -> bool:
    """Whether ``count`` trials of 60 epochs are running, one for each of so many workers, and none is about to end."""
    try:
        found = [trial for trial in trials_of(name, storage) if trial.state == TrialState.RUNNING]
    except (KeyError, optuna.exceptions.OptunaError):
        return False
    return len(found) == count and all(0 < len(trial.intermediate_values) < 50 for trial in found)
