"""The product as its users run it: real processes, real `mlflow run`, a real store."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import Command, free_port, mlflow_run, mlflow_server
from mlflow.entities import Run

from elbolab import load_model
from elbolab.config.schema import MainConfig
from elbolab.data.splits import load_data
from elbolab.experiment.suite import run_all
from elbolab.models.latent import LatentModel
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import PARENT

TINY = ["--train-size", "40", "--val-size", "10", "--test-size", "10", "--epochs", "1"]


def runs() -> list[Run]:
    return mlflow.MlflowClient().search_runs(["0"], order_by=["start_time ASC"])


def test_a_training_is_one_complete_run(command: Command, store: Path):
    done = command("vae", "--latent-dim", "4", *TINY[:-1], "5", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    run = mlflow_reader.get_run(run_id)
    assert run.status == "FINISHED"
    assert run.params["model"] == "vae"
    assert run.params["latent_dim"] == "4"
    assert run.params["lr"] == "0.001"
    for tag in ("data.digest", "data.name", "observation_model", "device"):
        assert run.tags[tag]
    config = json.loads(artifacts.read(run_id, "config.json", Path.read_text))
    assert config["latent_dim"] == 4

    history = mlflow_reader.history([run_id])
    keys = {f"{split}/{key}" for split in ("train", "val") for key in ("loss", "elbo", "mse", "kl")}
    assert set(history.key) == keys | {f"train/{name}" for name in ("lr", "steps", "seconds", "images_per_s")}
    assert all(list(part.step) == [1, 2, 3, 4, 5] for _, part in history.groupby("key"))
    last = history[history.step == 5].set_index("key").value
    # At beta = 1 the loss is minus the ELBO.
    assert last["val/loss"] == pytest.approx(-last["val/elbo"], rel=1e-5)

    for key in ("reconstructions_train", "reconstructions_val", "samples"):
        assert list(artifacts.step_images(run_id, key)) == [1, 5]
    assert set(artifacts.list_artifacts(run_id, "checkpoints")) == {
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
    }
    inputs = mlflow.MlflowClient().get_run(run_id).inputs
    assert inputs is not None
    assert [item.dataset.digest for item in inputs.dataset_inputs] == [run.tags["data.digest"]]
    assert not (store / "unfinished").exists()

    model = load_model(run_id)
    assert isinstance(model, LatentModel)
    served = mlflow.pyfunc.load_model(f"models:/{artifacts.model_of(run_id)}")
    digits = load_data("mnist5k", Path(), train_size=40, val_size=10, test_size=10).test
    expected = model.reconstruct(model.infer(next(digits.batches(10)))).permute(0, 2, 3, 1)
    got = served.predict(digits.images.permute(0, 2, 3, 1).numpy())
    assert abs(expected.numpy() - got).max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae", "--latent_dmi", "3"], "No such option"),
        (["vae", "--latent-dim", "0"], "latent_dim=0: should be greater than 0"),
        (["vae", "--lr", "fast"], "'fast' is not a valid float"),
        (["vae", "--dataset", "mnist6k"], "dataset='mnist6k' does not exist; did you mean mnist5k?"),
        (["vae", "--train-size", "9999"], "train_size=9999 must be at most 4000"),
        (["ppca", "--latent-dim", "784"], "latent_dim=784 must be less than 784"),
        (["latent_opt", "--latent-init", "ones"], "latent_init='ones': should be zeros, normal, pca or encoder:RUN"),
        (["latent_opt", "--latent-init", "encoder:nothing"], "run 'nothing' is not on"),
        (["vae", "--new-run"], "new_run=True needs resume, the run whose parameters it takes; add --resume RUN"),
        (["vea"], "No such command 'vea'"),
        (["vae", "--net", "dense"], "net='dense': should be conv, mlp or path/to/file.py:Name"),
        (["evaluate"], "Missing argument 'RUN'; see `elbolab evaluate --help`"),
        (
            ["evaluate", "x", "--images", "-3"],
            "images='-3': should be greater than 0, or should be 'all' (default 200)",
        ),
        (["evaluate", "nothing"], "run 'nothing' is not on"),
        (["compare", "--run", "nothing"], "run 'nothing' is not on"),
        (["main", "--epochs", "0"], "epochs=0: should be greater than 0"),
        (["main", "--dataset", "mnist6k"], "dataset='mnist6k' does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(command_here: Command, arguments: list[str], message: str):
    done = command_here(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("elbolab: ")
    assert message in line
    assert [run for run in runs() if run.info.status in ("RUNNING", "FINISHED")] == []


def test_black_and_white_as_zero_and_one_are_refused_until_the_file_says_so(command_here: Command, store: Path):
    """Taken as 0 to 255 they would have a log p(x) that flatters the model by hundreds of nats."""
    arrays = {"images": np.random.default_rng(0).integers(0, 2, (40, 8, 8), np.uint8), "labels": np.arange(40) % 10}
    np.savez(store / "own.npz", **arrays)
    given = ["ppca", "--dataset", "npz:~/own.npz", "--latent-dim", "2"]
    refused = command_here(*given, HOME=str(store))
    assert refused.returncode == 2
    assert refused.stderr.startswith("elbolab: npz:~/own.npz has no pixel above 1, but 255 is white; ")
    assert len(refused.stderr.splitlines()) == 1
    assert not runs()
    np.savez(store / "own.npz", **arrays, white=1)
    done = command_here(*given, HOME=str(store))
    assert done.returncode == 0, done.stderr
    # A pixel of 0 or 1 is half a unit from its mean: of sigma 0.4 that costs 0.78 nats beside the constant.
    elbo = mlflow_reader.get_run(done.stdout.strip()).metrics["val/elbo"]
    assert elbo < -64 * (0.5 / 0.4) ** 2 / 2 * 0.8


# Where a report should be written, or a temporary file.
FULL = """
import errno, os, sys
from elbolab import cli
from elbolab.report import compare
def full(config):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report/index.html")
compare.compare = full
sys.argv[1:] = ["compare"]
cli.main()
"""


def test_a_full_disk_is_one_line(store: Path):
    done = subprocess.run([sys.executable, "-c", FULL], cwd=store, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"elbolab: .*No space left on device: 'report/index.html'; free some space\n", done.stderr)


def test_a_training_that_diverges_is_failed_with_its_reason(command: Command, store: Path):
    done = command("vae", *TINY[:-1], "3", "--lr", "1e30")
    assert done.returncode == 2
    assert "lower lr" in done.stderr
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "lower lr" in run.data.tags["failure"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_training_is_killed(store: Path, number: signal.Signals, code: int):
    command = [sys.executable, "-m", "elbolab", "vae", "--train-size", "500", "--epochs", "500"]

    def heed() -> None:
        # A shell starts its background jobs with Ctrl-C ignored, and so would every process under them.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=store, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2 " in line.replace("/", " "):
                break
        process.send_signal(number)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert list(store.glob("unfinished/*/state-*.safetensors"))


@pytest.mark.scale
def test_four_first_uses_of_a_store_at_the_same_time(unused_store: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "elbolab", "ppca", "--latent-dim", "2", *TINY, "--seed", str(seed)],
            cwd=unused_store,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert sorted(run.data.params["seed"] for run in runs()) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs()} == {"FINISHED"}


def test_what_is_wrong_with_the_last_training_of_main_is_told_before_the_first(store: Path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(store / "small.npz", images=images, labels=np.arange(40) % 10)
    with pytest.raises(UserError, match="latent_dim=200 must be less than"):
        run_all(MainConfig.parse({"dataset": "npz:small.npz", "val_size": 10, "test_size": 10}))
    assert not runs()


@pytest.mark.scale
def test_every_entry_point_by_mlflow_run(store: Path):
    small = ["train_size=40", "val_size=10", "test_size=10"]
    for name, *more in (
        ("cnn", "epochs=1"),
        ("vae", "epochs=1", "latent_dim=4", "lr=1e-3"),
        ("iwae", "epochs=1", "latent_dim=4", "iw_samples=2"),
        ("hierarchical", "epochs=1", "latent_dim=4"),
        ("semi_amortized", "epochs=1", "latent_dim=4", "refine_steps=2"),
        ("latent_opt", "epochs=1", "latent-dim=4", "fit_steps=3"),
        ("ppca", "latent_dim=4"),
    ):
        done = mlflow_run(store, name, *small, *more)
        assert done.returncode == 0, done.stderr
    by_model = {run.params["model"]: run for run in mlflow_reader.find_runs()}
    assert set(by_model) == {"cnn", "vae", "iwae", "hierarchical", "semi_amortized", "latent_opt", "ppca"}
    # The parent logs 1e-3 as it was typed; the value that was used is in config.json.
    vae = by_model["vae"].id
    assert by_model["vae"].params["lr"] == "1e-3"
    assert json.loads(artifacts.read(vae, "config.json", Path.read_text))["lr"] == 0.001

    done = mlflow_run(store, "evaluate", f"run={vae}", "samples=10", "images=10", "budget=1")
    assert done.returncode == 0, done.stderr
    evaluated = mlflow_reader.get_run(vae)
    assert evaluated.metrics["test/log_px"] < 0
    assert evaluated.tags["evaluation.cnn_run"] == by_model["cnn"].id
    table = artifacts.read(vae, "evaluation/likelihood.parquet", pd.read_parquet)
    assert table.groupby(["split", "posterior"]).size().to_dict() == {
        ("train", "encoder"): 10,
        ("val", "encoder"): 10,
        ("test", "encoder"): 10,
        ("test", "fitted"): 10,
    }

    done = mlflow_run(store, "compare", f"out={store / 'out'}")
    assert done.returncode == 0, done.stderr
    page = (store / "out" / "index.html").read_text()
    assert all(run.id[:8] in page for run in by_model.values())

    done = mlflow_run(
        store, "explore", f"run={vae},{by_model['latent_opt'].id}", "images=10", f"out={store / 'explorer.html'}"
    )
    assert done.returncode == 0, done.stderr
    assert vae in (store / "explorer.html").read_text()
    calls = {run.data.tags["elbolab.kind"]: run.data.tags[PARENT] for run in runs() if PARENT in run.data.tags}
    assert calls == {"evaluate call": vae, "explore call": vae}
    assert {run.info.status for run in runs()} == {"FINISHED"}

    done = mlflow_run(store, "vae", "latent_dim=0")
    assert done.returncode != 0
    assert "latent_dim=0: should be greater than 0" in done.stderr
    assert runs()[-1].info.status == "FAILED"


def test_the_whole_experiment_by_mlflow_run(store: Path):
    small = [
        "train_size=40",
        "val_size=10",
        "test_size=10",
        "epochs=1",
        "samples=10",
        "images=22",
        "seed=1",
        "simulated=2",
        "budget=1",
    ]
    done = mlflow_run(store, "main", *small, f"out={store / 'report'}")
    assert done.returncode == 0, done.stderr
    # Every seed of the trainings is evaluated alike.
    assert {(run.params["seed"], run.tags.get("evaluation.seed")) for run in mlflow_reader.find_runs()} >= {("1", "0")}
    assert "1" not in {run.tags.get("evaluation.seed") for run in mlflow_reader.find_runs()}
    assert {run.info.status for run in runs()} == {"FINISHED"}
    kinds = [run.data.tags["elbolab.kind"] for run in runs()]
    assert sorted(kinds) == ["compare", "main", *["train"] * 6]
    starts = [run.params["latent_init"] for run in mlflow_reader.find_runs() if run.params["model"] == "latent_opt"]
    assert sorted(starts) == ["normal", "pca", "zeros"]
    images = [run.tags["evaluation.images"] for run in mlflow_reader.find_runs()]
    assert sorted(images) == ["20", "20", *["22"] * 4]
    for name in ("index.html", "report.md"):
        assert (store / "report" / name).stat().st_size > 1000


@pytest.mark.scale
def test_the_same_command_logs_to_a_server(store: Path, command: Command):
    with mlflow_server(store, f"sqlite:///{store}/server.db", free_port()) as address:
        there = {"MLFLOW_TRACKING_URI": address, "MLFLOW_EXPERIMENT_NAME": "digits"}
        done = command("ppca", "--latent-dim", "2", *TINY, **there)
        assert done.returncode == 0, done.stderr
        done = command("evaluate", done.stdout.split()[-1], "--images", "10", **there)
        assert done.returncode == 0, done.stderr
        done = command("compare", **there)
        assert done.returncode == 0, done.stderr
        assert f"{address}/#/experiments/" in (store / "report" / "index.html").read_text()
        client = mlflow.MlflowClient(address)
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"FINISHED"}
