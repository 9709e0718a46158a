"""What a study is given and what it keeps: values of numpy, databases of other versions, a lost tracking store."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_store
from helpers_studies import SEARCH, TINY, carry_out, children, define, trials_of
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import create_engine, inspect, text

from elbolab import Reproduction, Study, Training
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tuning.command import load_study
from elbolab.tuning.optuna_storage import open_storage

TWO = {"latent_dim": 2, "prior": "normal"}, {"latent_dim": 3, "prior": "normal"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"base": {"epochs": np.int64(2), "lr": np.float32(0.5)}}, {"base": {"epochs": 2, "lr": 0.5}}),
        ({"base": {"lr": np.array(0.5)}}, {"base": {"lr": 0.5}}),
        ({"base": {"beta_warmup": torch.tensor(2)}}, {"base": {"beta_warmup": 2}}),
        ({"base": {"data_dir": Path("data")}}, {"base": {"data_dir": "data"}}),
        ({"narrow": {"lr": np.array([0.001, 0.002])}}, {"narrow": {"lr": (0.001, 0.002)}}),
        ({"narrow": {"lr": (np.float64(0.001), np.float64(0.002))}}, {"narrow": {"lr": (0.001, 0.002)}}),
        (
            {"search": ["latent_dim"], "narrow": {"latent_dim": np.arange(2, 4)}},
            {"search": ["latent_dim"], "narrow": {"latent_dim": (2, 3)}},
        ),
        (
            {"search": ["activation"], "narrow": {"activation": np.array(["relu", "tanh"])}},
            {"search": ["activation"], "narrow": {"activation": ("relu", "tanh")}},
        ),
        ({"search": np.array(["lr"])}, {"search": ["lr"]}),
        (
            {"search": (), "configs": ({"latent_dim": d, "prior": np.str_("normal")} for d in np.arange(2, 4))},
            {"search": (), "configs": TWO},
        ),
        (
            {"search": (), "configs": np.array([{"latent_dim": np.int8(2), "prior": "normal"}, TWO[1]])},
            {"search": (), "configs": TWO},
        ),
        (
            {"search": (), "configs": pd.DataFrame(TWO).to_dict("records"), "seeds": np.arange(2)},
            {"search": (), "configs": TWO, "seeds": (0, 1)},
        ),
        ({"trials": np.int64(3), "images": np.int32(5)}, {"trials": 3, "images": 5}),
    ],
)
def test_values_from_an_array_are_those_that_they_stand_for(given: dict[str, Any], meant: dict[str, Any]):
    sound = {"model": "vae", "search": ["lr"]}
    one, other = Study(**{**sound, **given}), Study(**{**sound, **meant})
    # What Optuna keeps of a study, by which it is known again.
    assert one.model_dump_json() == other.model_dump_json()
    assert repr(one.space) == repr(other.space)


def test_a_reproduction_takes_values_from_an_array():
    def one(sizes: Any, seeds: Any) -> Reproduction:
        trainings = {f"{int(size)} dimensions": Training(model="vae", fields={"latent_dim": size}) for size in sizes}
        return Reproduction(question="Does it?", trainings=trainings, seeds=seeds, metrics=("test/log_px",))

    assert one(np.arange(2, 4), np.arange(2)).model_dump_json() == one((2, 3), (0, 1)).model_dump_json()


@pytest.mark.parametrize("value", [Fraction(1, 1000), np.longdouble(0.001), object, np.nan])
def test_a_value_that_json_has_not_is_refused_by_name(tmp_path: Path, value: Any):
    with pytest.raises(ValueError, match=r"base\.lr"):
        Study(model="vae", search=("latent_dim",), base={"lr": value})
    file = tmp_path / "study.py"
    file.write_text("from elbolab import Study\nSTUDY = Study(model='vae', search=['beta'], base={'lr': 1j})\n")
    with pytest.raises(UserError, match=r"study\.py: base=1j: .*valid JSON"):
        load_study(str(file))


def test_a_study_of_numpys_values_is_carried_out_and_goes_on(store: Path):
    search = f"""
import numpy as np
from elbolab import Study
SIZES = np.array(list({{{TINY}}}.values()))
STUDY = Study(
    model="vae", base=dict(zip({{{TINY}}}, SIZES)), search=["latent_dim", "lr"], metrics=["val/elbo"],
    narrow={{"latent_dim": np.arange(2, 9)[[0, -1]], "lr": np.logspace(-3, -2, 2)}},
)
"""
    parent = carry_out(define(store, "search", search), trials=1)
    assert carry_out("search", trials=2) == parent
    listed = f"""
import numpy as np
from elbolab import Study
STUDY = Study(
    model="vae", base={{{TINY}}}, configs=[{{"latent_dim": d}} for d in np.arange(2, 4)], seeds=np.arange(1),
    metrics=["val/elbo"],
)
"""
    parent = carry_out(define(store, "listed", listed))
    assert sorted(run.data.params["latent_dim"] for run in children(parent).values()) == ["2", "3"]


def set_version(url: str, version: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engine.dispose()


def tables_of(url: str) -> set[str]:
    engine = create_engine(url)
    found = set(inspect(engine).get_table_names())
    engine.dispose()
    return found


@pytest.mark.parametrize(
    ("version", "remedy"),
    [("v3.0.0.d", "`optuna storage upgrade --storage sqlite:///old.db`"), ("v99.0.0.a", "`pip install -U optuna`")],
)
def test_a_storage_of_another_version_is_one_line_with_the_remedy(store: Path, version: str, remedy: str):
    RDBStorage("sqlite:///old.db").engine.dispose()
    set_version("sqlite:///old.db", version)
    define(store, "search", SEARCH)
    with pytest.raises(UserError, match=r"storage='sqlite:///.*old\.db': The runtime optuna version") as told:
        carry_out("search", storage="sqlite:///old.db")
    assert remedy in str(told.value).replace(f"{store}/", "")
    assert mlflow.MlflowClient().search_runs(["0"]) == []


def test_the_database_of_another_program_is_left_as_it_is(store: Path):
    define(store, "search", SEARCH)
    before = tables_of("sqlite:///mlflow.db")
    with pytest.raises(UserError, match=r"mlflow\.db is that of another program than Optuna; name another one"):
        carry_out("search", storage="sqlite:///mlflow.db")
    assert tables_of("sqlite:///mlflow.db") == before
    open_storage("sqlite:///optuna.db", 10).engine.dispose()
    before = tables_of("sqlite:///optuna.db")
    mlflow.set_tracking_uri("sqlite:///optuna.db")
    with pytest.raises(UserError, match=r"optuna\.db is that of another program than MLflow"):
        mlflow_reader.prepare_store()
    assert tables_of("sqlite:///optuna.db") == before


@pytest.mark.parametrize("url", ["optuna.db", "journal.log", "redis://host", "mysql://host/x", "postgresql+none://h/x"])
def test_a_storage_that_is_no_database_is_one_line(url: str):
    with pytest.raises(UserError, match=r"cannot be opened: .*; name a database that can"):
        open_storage(url, 10)


@pytest.fixture
def another_store(store: Path, tables: Path) -> Callable[[], None]:
    """Have a fresh tracking store, as where the database was removed; MLflow keeps those of one address open."""

    def change() -> None:
        copy_store(tables, store / "fresh.db")
        mlflow.set_tracking_uri(f"sqlite:///{store}/fresh.db")

    return change


def test_a_study_whose_tracking_store_is_lost_is_mirrored_anew(store: Path, another_store: Callable[[], None]):
    define(store, "search", SEARCH)
    first = carry_out("search", trials=3)
    runs_before, address = children(first), mlflow.get_tracking_uri()
    another_store()
    with pytest.raises(UserError, match=rf"run {first}, which is not on sqlite:.*`elbolab study search --sync`"):
        carry_out("search", trials=4)
    parent = carry_out("search", sync=True)
    assert parent != first
    assert mlflow_reader.get_run(parent).status == "FINISHED"
    runs = children(parent)
    for trial in trials_of("search"):
        run, before = runs.pop(trial.number), runs_before[trial.number]
        assert run.data.params == before.data.params
        assert run.info.status == before.info.status
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/elbo")
        assert {one.step: one.value for one in history} == trial.intermediate_values
        if trial.state == TrialState.COMPLETE:
            assert run.data.metrics["objective/elbo"] == trial.value
    assert not runs
    assert "figures/history.png" in artifacts.list_artifacts(parent, "figures")
    assert carry_out("search", sync=True) == parent
    assert carry_out("search", trials=4) == parent
    assert len(children(parent)) == 4
    # Where the first store is found again, so is the run in it.
    mlflow.set_tracking_uri(address)
    assert carry_out("search", sync=True) == first
    assert len(children(first)) == 4


def test_a_study_whose_run_is_deleted_goes_on_once_it_is_restored(store: Path):
    define(store, "search", SEARCH)
    parent = carry_out("search", trials=1)
    mlflow.MlflowClient().delete_run(parent)
    for values in ({"trials": 2}, {"sync": True}):
        with pytest.raises(UserError, match=rf"is deleted; `mlflow runs restore --run-id {parent}` brings it back"):
            carry_out("search", **values)
    mlflow.MlflowClient().restore_run(parent)
    assert carry_out("search", trials=2) == parent
