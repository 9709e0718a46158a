"""Two processes of torchrun compute what one computes, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import REPOSITORY, trained
from mlflow.entities import Run
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from two_processes import CASES, SHARED, fit

from elbolab import load_model
from elbolab.data.splits import Data
from elbolab.experiment import train
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.training import distributed
from elbolab.training.backend import Backend
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.distributed import Processes

pytestmark = pytest.mark.scale
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TINY = [item for key, value in SHARED.items() for item in (f"--{key}", str(value))]

# The second process fails in its second epoch while the first waits for it.
FAIL = """
from elbolab import cli
from elbolab.training import trainer
validate = trainer._validate
def fail(model, split, epoch, backend):
    if backend.rank == 1 and epoch == 2:
        raise ArithmeticError("two and two are five")
    return validate(model, split, epoch, backend)
trainer._validate = fail
cli.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one store for all, since creating it takes as long as a training; each test is an experiment."""
    folder = tmp_path_factory.mktemp("processes")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield folder
    mlflow.set_tracking_uri(before)


def start(folder: Path, experiment: str, *arguments: str) -> subprocess.Popen[str]:
    """Two processes of torchrun."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=folder,
        env={**environment, "MLFLOW_EXPERIMENT_NAME": experiment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def only_run(experiment: str) -> Run:
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """The folder in which two processes have trained every case, and one was killed then."""
    process = start(folder, "killed", str(REPOSITORY / "tests" / "two_processes.py"))
    _, errors = process.communicate(timeout=240)
    assert (folder / list(CASES)[-1] / "0.json").exists(), errors
    assert process.returncode != 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_computes(pairs: Path, tmp_path: Path, case: str):
    expected = fit(case, tmp_path)
    first, second = (json.loads((pairs / case / f"{rank}.json").read_text()) for rank in (0, 1))
    # Else the two could call different epochs the best.
    assert first == second
    assert len(first) == len(expected)
    for got, metrics in zip(first, expected, strict=True):
        assert got == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name in ("last", "best"):
        one, two = (load_checkpoint(folder / f"{name}.safetensors") for folder in (tmp_path, pairs / case))
        assert (two.config, two.spec) == (one.config, one.spec)
        assert_equal_weights(two, one)


def assert_equal_weights(got: Model, expected: Model) -> None:
    """Equal but for rounding, as a whole: where a gradient is 1e-9, Adam makes a step of it."""
    assert got.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        distance = torch.linalg.vector_norm((got.state_dict()[key] - value).double())
        assert distance <= 5e-5 * torch.linalg.vector_norm(value.double()), key


def test_a_killed_process_ends_the_other(pairs: Path):
    run = only_run("killed")
    assert run.info.status in ("FAILED", "KILLED")
    assert run.info.end_time is not None
    assert run.info.end_time - run.info.start_time < 20_000


def test_torchrun_leaves_one_complete_run(folder: Path, tmp_path: Path):
    left = set(folder.glob("unfinished/*"))
    process = start(
        folder, "whole", "-m", "elbolab", "latent_opt", "--latent-dim", "4", "--latent-init", "normal", *TINY
    )
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    run = only_run("whole")
    assert run.info.status == "FINISHED"
    assert output.split() == [run.info.run_id]
    assert errors.count(" s left\n") == SHARED["epochs"]
    assert run.data.tags["processes"] == "2"
    assert set(folder.glob("unfinished/*")) == left
    expected = fit("latent_opt", tmp_path)
    history = mlflow_reader.history([run.info.run_id])
    for key in ("train/loss", "val/elbo"):
        assert list(history[history.key == key].value) == pytest.approx([each[key] for each in expected], rel=1e-5)
    marked = {int(run.data.tags[name]) for name in ("best_epoch", "last_epoch")}
    assert set(artifacts.step_images(run.info.run_id, "reconstructions_train")) == {1, *marked}
    assert_equal_weights(load_model(run.info.run_id), load_checkpoint(tmp_path / "best.safetensors"))


def test_an_error_of_one_process_ends_both_with_its_reason(folder: Path):
    (folder / "fail.py").write_text(FAIL)
    process = start(folder, "fail", "fail.py", "vae", *TINY)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    run = only_run("fail")
    assert run.info.status == "FAILED"
    reason = "process 1: ArithmeticError: two and two are five"
    assert reason in run.data.tags["failure"]
    assert errors.count(f"elbolab: {reason}") == 1


def test_a_process_that_waits_for_another_hears_that_it_shall_end(folder: Path):
    with start(folder, "waits", "-m", "elbolab", "vae", *TINY, "--epochs", "100000") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2 " in line.replace("/", " "):
                break
        first, second = ranks(process)
        os.kill(second, signal.SIGSTOP)
        # Long enough that the first waits in a collective.
        time.sleep(1)
        os.kill(first, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while only_run("waits").info.status == "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(second, signal.SIGKILL)
        process.communicate(timeout=20)
    assert only_run("waits").info.status == "KILLED"


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of torchrun's processes, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return [next(int(child) for child in children if b"RANK=%d" % rank in variables[child]) for rank in (0, 1)]


def test_each_process_needs_an_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Backend, "processes", 3)
    with pytest.raises(UserError, match="batch_size=2 must be at least 3"):
        train.train_model("vae", MODELS["vae"].Config.parse({"batch_size": 2}))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 41])
@pytest.mark.parametrize("many", [1, 2, 3, 5])
def test_every_place_has_one_owner(count: int, many: int):
    places = torch.arange(count)
    for rank in range(many):
        backend = Processes(rank, many, HashStore())
        owners = backend.owners(places, count)
        assert torch.equal(places[backend.owned(count)], places[owners == rank])
        assert owners.max() < many


@pytest.mark.parametrize("many", [2, 3, 5])
def test_the_shares_of_a_batch_are_its_images_each_once_with_the_rows_of_a_table_that_are_kept(digits: Data, many: int):
    whole = trained("latent_opt", digits, net="mlp")
    batch = digits.train.batch(torch.randperm(len(digits.train))[:21])
    expected, found = whole.posterior(batch).mean, torch.empty(21, 200)
    for rank in range(many):
        model, backend = trained("latent_opt", digits, net="mlp"), Processes(rank, many, HashStore())
        model.keep_rows(backend.owned)
        assert len(model.train_rows) <= -(-len(digits.train) // many)
        with backend.share(model, batch) as own:
            found[torch.isin(batch.index, own.index)] = model.posterior(own).mean
    assert torch.equal(found, expected)


def test_without_torchrun_there_is_no_group():
    with distributed.group("cpu") as processes:
        assert processes is None
