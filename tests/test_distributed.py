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
from mlflow.entities import Run
from two_processes import CASES, SHARED, fit

from elbolab import load_model, tracker
from elbolab.checkpoint import load_checkpoint
from elbolab.data import load_data
from elbolab.models import LatentModel

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TINY = [item for key, value in SHARED.items() for item in (f"--{key}", str(value))]

# One process fails in its second epoch while the other waits for it.
FAIL = """
import os
from elbolab import cli, trainer
validate = trainer._validate
def fail(model, split, epoch):
    if os.environ["RANK"] == "1" and epoch == 2:
        raise ArithmeticError("two and two are five")
    return validate(model, split, epoch)
trainer._validate = fail
cli.main()
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Two processes of torchrun, in a folder that has the store."""
    return subprocess.Popen(
        [*TORCHRUN, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained every case."""
    folder = tmp_path_factory.mktemp("pairs")
    process = start(folder, str(Path(__file__).with_name("two_processes.py")))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_computes(pairs: Path, tmp_path: Path, case: str):
    expected = fit(case, tmp_path)
    first, second = (json.loads((pairs / case / f"{rank}.json").read_text()) for rank in (0, 1))
    # Both must call the same epoch the best.
    assert first == second
    assert len(first) == len(expected)
    for got, metrics in zip(first, expected, strict=True):
        assert got == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name in ("last", "best"):
        one, two = (load_checkpoint(folder / f"{name}.safetensors") for folder in (tmp_path, pairs / case))
        assert (two.config, two.spec) == (one.config, one.spec)
        torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=5e-5)


def only_run() -> Run:
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    return run


def test_torchrun_leaves_one_complete_run(store: Path, tmp_path_factory: pytest.TempPathFactory):
    process = start(store, "-m", "elbolab", "latent_opt", "--latent-dim", "4", "--latent-init", "normal", *TINY)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    run = only_run()
    assert run.info.status == "FINISHED"
    assert output.split() == [run.info.run_id]
    assert errors.count("latent_opt: epoch") == 3
    assert run.data.tags["processes"] == "2"
    assert not (store / "checkpoints").exists()
    history = tracker.history([run.info.run_id])
    expected = fit("latent_opt", tmp_path_factory.mktemp("one"))
    for key in ("train/loss", "val/elbo"):
        got = history[history.key == key].sort_values("step").value
        assert list(got) == pytest.approx([metrics[key] for metrics in expected], rel=1e-5)
    assert list(tracker.step_images(run.info.run_id, "reconstructions_train")) == [1]
    model = load_model(run.info.run_id)
    assert isinstance(model, LatentModel)
    data = load_data("mnist5k", Path(), train_size=41, val_size=11, test_size=10)
    assert model.posterior(data.train.batch(torch.arange(41))).mean.shape == (41, 4)


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of torchrun's processes, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return [next(int(child) for child in children if b"RANK=%d" % rank in variables[child]) for rank in (0, 1)]


@pytest.fixture
def long_training(store: Path) -> Iterator[subprocess.Popen[str]]:
    """A training by two processes that has reached its second epoch and has many more to go."""
    with start(store, "-m", "elbolab", "vae", *TINY, "--epochs", "100000") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2/" in line:
                break
        yield process
        process.kill()


def test_an_error_of_one_process_ends_both_with_its_reason(store: Path):
    (store / "fail.py").write_text(FAIL)
    process = start(store, "fail.py", "vae", *TINY)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    run = only_run()
    assert run.info.status == "FAILED"
    assert "process 1: ArithmeticError: two and two are five" in run.data.tags["failure"]
    assert errors.count("elbolab: process 1: ArithmeticError: two and two are five") == 1


def test_a_killed_process_ends_the_other(long_training: subprocess.Popen[str]):
    os.kill(ranks(long_training)[1], signal.SIGKILL)
    long_training.communicate(timeout=20)
    assert long_training.returncode != 0
    assert only_run().info.status in ("FAILED", "KILLED")


def test_a_process_that_waits_for_another_hears_that_it_shall_end(long_training: subprocess.Popen[str]):
    first, second = ranks(long_training)
    os.kill(second, signal.SIGSTOP)
    # Long enough that the first is blocked in a collective.
    time.sleep(1)
    os.kill(first, signal.SIGTERM)
    deadline = time.monotonic() + 15
    while only_run().info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(second, signal.SIGKILL)
    long_training.communicate(timeout=20)
    assert only_run().info.status == "KILLED"


def test_a_mistake_is_told_once(store: Path):
    process = start(store, "-m", "elbolab", "vae", "--batch-size", "1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("elbolab: batch_size=1 must be at least 2") == 1
    assert mlflow.MlflowClient().search_runs(["0"]) == []
