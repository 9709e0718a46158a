"""A study has the data that it began with in every trial, whatever becomes of the files."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from helpers_studies import carry_out, children, define, trials_of
from optuna.trial import TrialState

from elbolab.support.errors import UserError
from elbolab.training.trainer import train

OWN = """
from elbolab import Study
STUDY = Study(model="ppca", base={"dataset": "npz:own.npz"}, %s, metrics=["val/elbo"], trials=4)
"""
SEARCHED = 'search=["latent_dim"], narrow={"latent_dim": (2, 9)}'
LISTED = 'configs=[{"latent_dim": size} for size in (2, 3, 4, 5)]'
OTHER = r"^npz:own\.npz has the digest \w+ now and had \w+ when study 'own' began; bring back the files of then"


def states(state: TrialState) -> int:
    return sum(trial.state == state for trial in trials_of("own"))


def save_images(store: Path, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(store / "own.npz", images=images, labels=np.arange(60) % 3)


@pytest.mark.parametrize("kind", [SEARCHED, LISTED])
def test_a_study_goes_on_with_the_data_that_it_began_with_or_not_at_all(kind: str, store: Path):
    save_images(store, 0)
    run = carry_out(define(store, "own", OWN % kind), trials=2)
    save_images(store, 1)
    for values in ({"trials": 4}, {"finalise": 1}):
        with pytest.raises(UserError, match=OTHER):
            carry_out("own", **values)
    assert states(TrialState.COMPLETE) == 2
    assert states(TrialState.FAIL) == 0
    assert mlflow.get_run(run).info.status == "FINISHED"
    # Which trains nothing, and reads no data.
    (store / "own.npz").unlink()
    carry_out("own", sync=True)
    save_images(store, 0)
    carry_out("own", trials=4)
    assert len({run.data.tags["data.digest"] for run in children(run).values()}) == 1
    assert len(children(run)) == 4


@pytest.mark.parametrize("kind", [SEARCHED, LISTED])
def test_data_that_change_while_a_study_is_under_way_end_it_and_cost_no_trial(
    kind: str, store: Path, monkeypatch: pytest.MonkeyPatch
):
    save_images(store, 0)

    def trained_then_changed(*arguments: Any) -> None:
        train(*arguments)
        save_images(store, 1)

    with monkeypatch.context() as patch:
        patch.setattr("elbolab.tuning.trial.train", trained_then_changed)
        with pytest.raises(UserError, match=OTHER):
            carry_out(define(store, "own", OWN % kind))
    assert states(TrialState.COMPLETE) == 1
    # As by Ctrl-C: the trial that found it is queued again.
    assert states(TrialState.FAIL) == 1
    save_images(store, 0)
    run = carry_out("own")
    assert states(TrialState.COMPLETE) == 4
    assert states(TrialState.FAIL) == 1
    done = [run for run in children(run).values() if run.info.status == "FINISHED"]
    assert len(done) == 4
    assert len({run.data.tags["data.digest"] for run in done}) == 1


def test_a_study_of_an_earlier_version_takes_the_data_of_today(store: Path):
    save_images(store, 0)
    carry_out(define(store, "own", OWN % SEARCHED), trials=1)
    with closing(sqlite3.connect(store / "optuna.db")) as database:
        database.execute("DELETE FROM study_user_attributes WHERE key = 'digest'")
        database.commit()
    carry_out("own", trials=2)
    save_images(store, 1)
    with pytest.raises(UserError, match=OTHER):
        carry_out("own", trials=3)
