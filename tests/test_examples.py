"""The examples do what their first lines say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Command

from elbolab.tracking import mlflow_reader
from elbolab.tracking.artifacts import list_artifacts

EXAMPLES = REPOSITORY / "examples"
TINY = ["--train-size", "60", "--val-size", "10", "--test-size", "10", "--epochs", "1", "--channels", "8"]
FEW = ["--images", "2", "--samples", "2", "--method", "importance"]


def commands(name: str) -> list[list[str]]:
    """What the docstring of an example has its reader type."""
    return [shlex.split(line) for line in re.findall(r"^    (.+)$", (EXAMPLES / name).read_text(), re.MULTILINE)[:2]]


@pytest.fixture
def examples(store: Path) -> Path:
    (store / "examples").symlink_to(EXAMPLES)
    return store


def test_a_model_of_its_own_is_trained_and_evaluated(examples: Path, command: Command):
    train, evaluate = commands("own_model.py")
    assert train[:2] == ["elbolab", "train"]
    trained = command(*train[1:], *TINY)
    assert trained.returncode == 0, trained.stderr
    run = mlflow_reader.get_run(trained.stdout.strip())
    assert (run.params["model"], run.params["channels"]) == ("BroadcastVAE", "8")
    assert list_artifacts(run.id, "code") == ["code/own_model.py"]
    evaluated = command(*evaluate[1:], *FEW)
    assert re.search(r"^test/log_px -\d+", evaluated.stdout, re.MULTILINE), evaluated.stderr


def test_pictures_of_its_own_are_learnt_and_explored(examples: Path, command: Command):
    (_, script), explore = commands("own_images.py")
    done = subprocess.run([sys.executable, script], env=os.environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"test log p\(x\): (\S+) nats; a constant image has (\S+)\n", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) > float(found[2]) + 1000
    assert {path.name for path in Path("shapes").iterdir()} == {"disc", "square"}
    explored = command(*explore[1:])
    assert explored.returncode == 0, explored.stderr
    assert Path("explorer.html").exists()


def test_a_model_of_pythae_is_trained_adopted_and_evaluated(examples: Path):
    pytest.importorskip("pythae")
    _, (_, script) = commands("adopted_pythae.py")
    done = subprocess.run([sys.executable, script], env=os.environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = re.search(r"^run (\w+)$", done.stdout, re.MULTILINE)
    assert run is not None, done.stdout
    assert mlflow_reader.get_run(run[1]).tags["adopted"].startswith("pythae 0.1.2: ")
    assert re.search(r"^test log p\(x\) -\d+", done.stdout, re.MULTILINE), done.stdout
