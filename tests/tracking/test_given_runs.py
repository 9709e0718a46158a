"""Runs that a call is given, by `mlflow run`, by MLFLOW_RUN_ID or by their ids; and those that are deleted."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.name_utils import _generate_random_name

from elbolab.config.schema import CompareConfig, EvaluateConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import prepare, resume
from elbolab.models import MODELS
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader, run_names
from elbolab.tracking.keys import KIND, PARENT
from elbolab.tracking.mlflow_writer import GENERATED
from elbolab.tracking.offline import UNFINISHED
from elbolab.tracking.run import nest_project_run, start_run

TINY = MODELS["ppca"].Config.parse({"latent_dim": 2, "train_size": 30, "val_size": 10, "test_size": 10})


def make_run(name: str | None = None) -> str:
    return mlflow.MlflowClient().create_run("0", run_name=name).info.run_id


def write(kind: str = "train", given: str | None = None, value: float = 1.0) -> str:
    """Write a run, as of a call in whose environment ``given`` is."""
    if given is not None:
        os.environ["MLFLOW_RUN_ID"] = given
    with start_run(kind, "ours", {"value": str(value)}, {}) as run:
        run.log_metrics({"val/elbo": value}, 1)
    assert "MLFLOW_RUN_ID" not in os.environ
    return run.id


def everything() -> dict[str, dict[str, str]]:
    """Tags of every run, by id."""
    return {run.info.run_id: run.data.tags for run in mlflow.MlflowClient().search_runs(["0"])}


def snapshot(run_id: str) -> tuple[dict[str, str], dict[str, str], dict[str, float], str]:
    run = mlflow.MlflowClient().get_run(run_id)
    return run.data.tags, run.data.params, run.data.metrics, run.info.status


@pytest.mark.parametrize("kind", ["train", "compare", "main", "study"])
def test_what_comes_second_into_a_run_is_nested_under_it(kind: str, store: Path):
    given = make_run()
    assert write("train", given) == given
    first = snapshot(given)
    others = [write(kind, given, 2.0) for _ in range(2)]
    assert len({given, *others}) == 3
    assert snapshot(given) == first
    for run in map(mlflow_reader.get_run, others):
        assert (run.params["value"], run.metrics["val/elbo"], run.tags[PARENT]) == ("2.0", 2.0, given)


def test_a_call_in_the_run_of_a_training_changes_no_other(store: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = write(), write()
    before = snapshot(one), snapshot(other)
    for given in (one, other):
        monkeypatch.setenv("MLFLOW_RUN_ID", given)
        nest_project_run(one, "evaluate call")
    assert (snapshot(one), snapshot(other)) == before
    # That of `mlflow run` is nested as always, and once.
    call = make_run()
    for run in (other, one):
        monkeypatch.setenv("MLFLOW_RUN_ID", call)
        nest_project_run(run, "evaluate call")
    assert (everything()[call][KIND], everything()[call][PARENT]) == ("evaluate call", other)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_run_that_the_store_does_not_have_is_told_before_the_work(
    is_deleted: bool, store: Path, monkeypatch: pytest.MonkeyPatch
):
    trained, run = write(), make_run() if is_deleted else 32 * "0"
    if is_deleted:
        mlflow.MlflowClient().delete_run(run)
    for call in (lambda: write(given=run), lambda: evaluate_run(trained, EvaluateConfig())):
        monkeypatch.setenv("MLFLOW_RUN_ID", run)
        with pytest.raises(UserError, match=f"{run}.*(not found|is deleted)"):
            call()
    assert set(everything()) == {trained}
    assert not UNFINISHED.exists()


def test_a_deleted_training_is_neither_evaluated_nor_compared_nor_resumed(store: Path):
    tags = prepare("ppca", TINY)[2]
    run = write()
    with pytest.raises(ZeroDivisionError), start_run("train", "cut short", {"model": "ppca", **TINY.params()}, tags):
        raise ZeroDivisionError
    (unfinished,) = set(everything()) - {run}
    (folder,) = UNFINISHED.iterdir()
    for one in (run, unfinished):
        mlflow.MlflowClient().delete_run(one)
    calls: list[Callable[[], object]] = [
        lambda: evaluate_run(run, EvaluateConfig()),
        lambda: compare(CompareConfig(run=(run,))),
        lambda: resume(unfinished),
    ]
    for call in calls:
        with pytest.raises(UserError, match="is deleted; bring it back by `mlflow runs restore --run-id"):
            call()
    assert not (store / "report").exists()
    # Once it is there again, it goes on.
    assert folder.exists()
    mlflow.MlflowClient().restore_run(unfinished)
    with start_run("train", "cut short", {}, {}, folder=folder):
        pass
    assert run_names.find_training(unfinished).id == unfinished


def test_a_name_that_somebody_gave_stays(store: Path):
    client = mlflow.MlflowClient()
    for name, kept in (("my baseline", True), ("calm-baseline-1", True), ("vae-2", True), (None, False)):
        run = write(given=make_run(name))
        assert client.get_run(run).info.run_name == (name if kept else "ours")
    assert all(GENERATED.fullmatch(_generate_random_name()) for _ in range(100))
    # Whoever renames a run that was interrupted finds it by that name once it is resumed.
    with pytest.raises(ZeroDivisionError), start_run("train", "ours", {}, {}):
        raise ZeroDivisionError
    (folder,) = UNFINISHED.iterdir()
    (run,) = [run for run, tags in everything().items() if "failure" in tags]
    client.set_tag(run, MLFLOW_RUN_NAME, "the good one")
    with start_run("train", "ours", {}, {}, folder=folder):
        pass
    assert (mlflow_reader.get_run(run).name, mlflow_reader.get_run(run).status) == ("the good one", "FINISHED")


@pytest.mark.scale
def test_two_trainings_of_one_mlflow_run_from_another_folder(store: Path):
    """A relative address of the store, a name, and an entry point of two commands."""
    project = store / "a project"
    project.mkdir()
    sizes = "--train-size 30 --val-size 10 --test-size 10"
    commands = " && ".join(f"python -m elbolab ppca {sizes} --latent-dim {dim}" for dim in (2, 3))
    (project / "MLproject").write_text(f"name: two\nentry_points:\n  main:\n    command: '{commands}'\n")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", project.name, "--env-manager", "local", "--run-name", "mine"],
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not (project / "mlflow.db").exists()
    first, second = sorted(mlflow_reader.find_runs(), key=lambda run: run.params["latent_dim"])
    assert [(run.name, run.params["latent_dim"]) for run in (first, second)] == [
        ("mine", "2"),
        ("ppca latent_dim=3 train_size=30 val_size=10 test_size=10", "3"),
    ]
    assert (first.tags.get(PARENT), second.tags[PARENT]) == (None, first.id)
    assert "val/elbo" in second.metrics
