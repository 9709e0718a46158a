"""A project folder that was moved: its store is found, and the files of its runs are expected where it was."""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import mlflow
import pytest

from elbolab import EvaluateConfig, evaluate_run, load_model, train_model
from elbolab.config.schema import CompareConfig
from elbolab.models.vae import VAE
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts
from elbolab.tracking import run as tracking
from elbolab.tracking.mlflow_reader import get_run

TINY = {"epochs": 1, "train_size": 40, "val_size": 10, "test_size": 10, "net": "mlp", "hidden": 8, "latent_dim": 2}
QUICKLY = EvaluateConfig(method="importance", images=10, samples=10, simulated=0)


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def project(store: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, as the working folder, whose store is new."""
    folder = store / "my old project's"
    folder.mkdir()
    shutil.copy(tables, folder / "mlflow.db")
    use(folder, monkeypatch)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    return folder


@pytest.fixture
def move(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Move the project, and work in it."""

    def to() -> Path:
        new = project.rename(project.with_name("moved"))
        use(new, monkeypatch)
        return new

    return to


def begun(name: str = "note") -> str:
    """A run with an artifact, as a training begins one."""
    with tracking.start_run("train", name, {}, {}) as run:
        run.log_value({"is": "there"}, "note.json")
    return run.id


def remedy_of(told: UserError) -> str:
    found = re.search(r"or `(.*)`$", str(told))
    assert found is not None
    return found[1]


def test_after_a_move_nothing_is_written_to_the_place_of_then_and_the_remedy_works(
    project: Path, move: Callable[[], Path]
):
    first = train_model("vae", VAE.Config.parse(TINY))
    new = move()
    with pytest.raises(UserError, match=rf"expected in {re.escape(str(project))}/mlruns/\d+ and are in") as told:
        train_model("vae", VAE.Config.parse(TINY))
    for read in (
        lambda: load_model(first),
        lambda: evaluate_run(first, QUICKLY),
        lambda: compare(CompareConfig(run=(first,))),
    ):
        with pytest.raises(UserError, match="and are in") as also:
            read()
        assert remedy_of(also.value) == remedy_of(told.value)
    assert not project.exists()
    assert not list(Path("unfinished").glob("*"))
    subprocess.run(remedy_of(told.value), shell=True, check=True)
    assert evaluate_run(first, QUICKLY)
    second = train_model("vae", VAE.Config.parse({**TINY, "seed": 1}))
    assert evaluate_run(second, QUICKLY)
    page = compare(CompareConfig(run=(first, second)))
    assert {first[:8], second[:8]} <= set(re.findall(r"[0-9a-f]{8}", page.read_text()))
    assert {path.name for path in new.glob("mlruns/*/*")} >= {first, second}


def test_a_training_that_was_interrupted_before_the_move_goes_on_once_that_is_mended(
    project: Path, move: Callable[[], Path]
):
    with suppress(KeyboardInterrupt), tracking.start_run("train", "vae", {"model": "vae"}, {}) as run:
        run.log_value({}, "before.json")
        raise KeyboardInterrupt
    folder = run.folder.relative_to(project)
    move()
    again = partial(tracking.start_run, "train", "vae", {"model": "vae"}, {}, folder=folder.absolute())
    with pytest.raises(UserError, match="move them back, or") as told, again():
        raise AssertionError
    assert not project.exists()
    subprocess.run(remedy_of(told.value), shell=True, check=True)
    with again() as run:
        run.log_value({}, "after.json")
    assert artifacts.list_artifacts(run.id) == ["after.json", "before.json"]


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "files of others", "a link that leads nowhere"])
def test_whatever_stands_at_the_old_place_the_remedy_leads_to_the_files(
    project: Path, move: Callable[[], Path], left: str
):
    first = begun()
    move()
    if left != "nothing":
        project.mkdir()
    if left == "a link that leads nowhere":
        (project / "mlruns").symlink_to("nowhere")
    if left == "files of others":
        (project / "mlruns" / get_run(first).experiment / "another").mkdir(parents=True)
    with pytest.raises(UserError, match="move them back, or") as told:
        artifacts.read(first, "note.json", Path.read_text)
    with pytest.raises(UserError) as also:
        artifacts.list_artifacts(first)
    assert str(also.value) == str(told.value)
    subprocess.run(remedy_of(told.value), shell=True, check=True)
    assert artifacts.list_artifacts(first) == ["note.json"]


def test_a_store_that_came_alone_says_which_folder_is_missing(
    project: Path, move: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
):
    first = begun()
    shutil.rmtree(move() / "mlruns")
    for write_or_read in (begun, lambda: artifacts.list_artifacts(first)):
        with pytest.raises(UserError, match=rf"but there is no {re.escape(str(project))}; bring it back, or begin"):
            write_or_read()
    assert not project.exists()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert artifacts.list_artifacts(begun()) == ["note.json"]


def test_the_files_of_another_project_in_the_working_folder_are_not_taken_for_moved_ones(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by `mlflow run`, which works in the folder of the project, on a store elsewhere."""
    other = project.with_name("other")
    (other / "mlruns" / "0").mkdir(parents=True)
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", (f"{project}/mlruns/0",))
        connection.commit()
    monkeypatch.chdir(other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")
    assert artifacts.list_artifacts(begun()) == ["note.json"]
    assert (project / "mlruns" / "0").is_dir()


def test_files_that_were_removed_hinder_no_new_run(project: Path):
    first = begun()
    shutil.rmtree(project / "mlruns")
    assert artifacts.list_artifacts(first) == []
    assert artifacts.list_artifacts(begun()) == ["note.json"]


def test_a_copy_goes_on_with_the_files_of_the_original(project: Path, monkeypatch: pytest.MonkeyPatch):
    first = begun()
    use(Path(shutil.copytree(project, project.with_name("copy"))), monkeypatch)
    assert artifacts.list_artifacts(first) == artifacts.list_artifacts(begun()) == ["note.json"]


def test_another_working_folder_than_that_of_the_store_has_its_own_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    """The store stays, and the folder in which its first run began is moved."""
    old, new = project / "old", project / "new"
    old.mkdir()
    monkeypatch.chdir(old)
    first = begun()
    old.rename(new)
    monkeypatch.chdir(new)
    with pytest.raises(UserError, match="move them back, or") as told:
        artifacts.list_artifacts(first)
    subprocess.run(remedy_of(told.value), shell=True, check=True)
    assert artifacts.list_artifacts(first) == ["note.json"]
    assert os.path.islink(old / "mlruns")
