"""Runs by what people type: the beginning of an id, a name, the newest; and what names and lists them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from elbolab import EvaluateConfig, evaluate_run, load_model
from elbolab.config.schema import CompareConfig, ExploreConfig, PromoteConfig
from elbolab.experiment.train import resume, train_model
from elbolab.explorer.page import explore
from elbolab.models import MODELS
from elbolab.registry.versions import promote
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts
from elbolab.tracking import run as tracking
from elbolab.tracking.meant_runs import Named, meant
from elbolab.tracking.mlflow_reader import get_run
from elbolab.tracking.run_names import find_run, find_training

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY: dict[str, Any] = {"train_size": 40, "val_size": 10, "test_size": 10, "latent_dim": 2}
SHARED = "train_size=40 val_size=10 test_size=10"


def trained(model: str = "ppca", **fields: Any) -> str:
    return train_model(model, MODELS[model].Config.parse({**TINY, **fields}))


def test_a_run_goes_by_the_beginning_of_its_id_by_its_name_and_as_the_newest(store: Path):
    first, second = trained(), trained(latent_dim=3)
    ppca, vae = f"ppca latent_dim=2 {SHARED}", trained("vae", epochs=1, net="mlp", hidden=4)
    for asked, expected in (
        (first[:8], first),
        (first[:31], first),
        (first, first),
        (ppca, first),
        ("latest", vae),
        ("latest:ppca", second),
        ("latest:vae", vae),
    ):
        assert find_training(asked).id == expected, asked
    # Wherever a run is asked for, and what is kept is its id.
    quick = EvaluateConfig(samples=2, images=4, simulated=0, budget=1)
    evaluate_run("latest:vae", quick)
    evaluate_run(ppca, quick)
    assert {run for run in (first, second, vae) if "test/log_px" in get_run(run).metrics} == {first, vae}
    assert load_model(second[:6]).config.latent_dim == 3
    assert promote(vae[:8], PromoteConfig(name="digits")) == "models:/digits/1"
    assert mlflow.MlflowClient().get_model_version("digits", "1").run_id == vae
    page = compare(CompareConfig.parse({"run": [first[:8], "latest:vae"]})).read_text()
    assert first in page
    assert vae in page
    explored = explore(["latest:vae", first[:8]], ExploreConfig(images=4)).read_text()
    assert explored.index(f"run-{vae}") < explored.index(f"run-{first}")
    started = trained("latent_opt", epochs=1, net="mlp", hidden=4, start="latest", latent_init="encoder:latest:vae")
    kept = json.loads(artifacts.read(started, "config.json", Path.read_text))
    assert (kept["start"], kept["latent_init"]) == (vae, f"encoder:{vae}")
    assert f" start={vae[:8]} latent_init=encoder:{vae[:8]} " in get_run(started).name


def test_what_no_run_or_more_than_one_is_meant_by_is_refused_in_a_line(store: Path):
    with pytest.raises(UserError, match="no finished training"):
        find_run("latest")
    one, other = trained(), trained()
    with pytest.raises(UserError, match=r"may mean any of 2 runs: .*; name one by its id") as error:
        find_run(f"ppca latent_dim=2 {SHARED}")
    assert one in str(error.value)
    assert other in str(error.value)
    with pytest.raises(UserError, match="no finished training of vae on"):
        find_run("latest:vae")
    # Three letters are too few, and quotes are no query.
    for asked in (one[:3], "it's", 'it"s', "%", "____", "latest:", "0" * 8):
        with pytest.raises(UserError, match="is not on"):
            find_run(asked)
    with pytest.raises(UserError, match="both kinds of quotes"):
        find_run("'\"")
    mlflow.MlflowClient().delete_run(one)
    assert find_run(f"ppca latent_dim=2 {SHARED}").id == other
    with pytest.raises(UserError, match="is deleted; bring it back"):
        find_run(one)
    with pytest.raises(UserError, match=f"run {one} is deleted; bring it back"):
        find_run(one[:10])
    # Of a whole id as a name the id is meant.
    mlflow.MlflowClient().update_run(other, name="abcd1234")
    assert find_run("abcd1234").id == other


def test_the_beginning_of_an_id_is_found_in_every_experiment_and_a_name_in_the_current_one(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    run = trained()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    own = trained(latent_dim=3)
    assert find_run(run[:8]).id == run
    assert find_run("latest").id == own
    with pytest.raises(UserError, match="is not on"):
        find_run(f"ppca latent_dim=2 {SHARED}")
    # An experiment is made by its first run.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a new one")
    assert find_run(run[:8]).id == run


def test_what_is_meant_among_some_runs():
    runs = [Named("a" * 32, "vae", "vae"), Named("ab" * 16, "mine", "cnn"), Named("c" * 32, "latest", None)]
    assert meant("latest", runs) == runs[:1]
    assert meant("latest:cnn", runs) == runs[1:2]
    assert meant("latest:iwae", runs) == []
    assert meant("aaaa", runs) == runs[:1]
    assert meant("mine", runs) == runs[1:2]
    assert meant("aa", runs) == []


def fails(monkeypatch: pytest.MonkeyPatch, model: str, **fields: Any) -> None:
    """A training that ends at its first epoch."""

    def broken(*arguments: Any) -> None:
        raise RuntimeError("the roof came down")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", broken)
        with pytest.raises(RuntimeError, match="the roof"):
            trained(model, **fields)


def test_an_unfinished_training_is_resumed_by_the_same_words(store: Path, monkeypatch: pytest.MonkeyPatch):
    for name, fields in (("ppca", {}), ("vae", {"epochs": 1, "net": "mlp", "hidden": 4})):
        fails(monkeypatch, name, **fields)
    runs = {run.data.params["model"]: run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])}
    with pytest.raises(UserError, match="no unfinished training of 'latest:cnn'"):
        resume("latest:cnn")
    assert resume("latest") == runs["vae"]
    assert resume(f"ppca latent_dim=2 {SHARED}") == runs["ppca"]
    assert {get_run(run).status for run in runs.values()} == {"FINISHED"}


def test_a_finished_training_is_trained_anew_with_other_fields(store: Path):
    """As the report advises where one has not converged."""
    run = trained("vae", epochs=1, net="mlp", hidden=4)
    with pytest.raises(UserError, match="has nothing to resume"):
        resume(run[:8])
    other = get_run(resume(run[:8], "vae", {"epochs": 2}, new_run=True))
    assert other.id != run
    assert (other.params["epochs"], other.params["hidden"]) == ("2", "4")
    with pytest.raises(UserError, match="model=cnn was vae"):
        resume(run[:8], "cnn", {}, new_run=True)
    with mlflow.start_run() as foreign:
        mlflow.log_param("model", "vae")
    with pytest.raises(UserError, match="is no train run"):
        resume(foreign.info.run_id, "vae", {}, new_run=True)


def test_what_mlflow_logs_as_it_was_typed_is_read_as_the_run_that_was_meant(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    """`mlflow run -P start=latest` logs `latest`, which is another run tomorrow."""
    source = trained("vae", epochs=1, net="mlp", hidden=4)
    given = mlflow.MlflowClient().create_run("0")
    for key, value in (("start", "latest"), ("latent_init", "encoder:latest:vae")):
        mlflow.MlflowClient().log_param(given.info.run_id, key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    fields: dict[str, Any] = {"epochs": 1, "net": "mlp", "hidden": 4, "start": "latest"}
    run = get_run(trained("latent_opt", latent_init="encoder:latest:vae", **fields))
    assert run.id == given.info.run_id
    assert mlflow.MlflowClient().get_run(run.id).data.params["start"] == "latest"
    assert (run.params["start"], run.params["latent_init"]) == (source, f"encoder:{source}")
    trained("vae", epochs=1, net="mlp", hidden=5)
    other = get_run(resume(run.id, "latent_opt", {"seed": 5}, new_run=True))
    assert (other.params["start"], other.params["latent_init"]) == (source, f"encoder:{source}")


def test_a_run_that_was_renamed_is_resumed_by_its_name(store: Path, monkeypatch: pytest.MonkeyPatch):
    fails(monkeypatch, "ppca")
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    mlflow.MlflowClient().update_run(run.info.run_id, name="my baseline")
    with pytest.raises(UserError, match="run 'your baseline' is not on"):
        resume("your baseline")
    assert resume("my baseline") == run.info.run_id
    with pytest.raises(UserError, match=f"run {run.info.run_id} has nothing to resume"):
        resume("my baseline")


def test_the_list_shows_the_score_of_the_model_and_not_of_the_last_epoch(store: Path, command_here: Command):
    client = mlflow.MlflowClient()
    tags = {"elbolab.kind": "train", "best_epoch": "2", "data.name": "npz:" + 300 * "x"}
    run = client.create_run("0", tags=tags).info.run_id
    for epoch, value in enumerate((-9.0, -3.0, -5.0), 1):
        client.log_metric(run, "val/elbo", value, step=epoch)
    client.set_terminated(run)
    header, line = command_here("runs").stdout.splitlines()
    assert "ELBO -3.00" in line
    assert header.index("state") < 60


def test_names_tell_runs_apart_and_models_have_them(store: Path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(store / "own.npz", images=images, labels=np.arange(40) % 10)
    fields = {"dataset": f"npz:{store}/own.npz", "val_size": 10, "test_size": 10, "net": "mlp", "hidden": 4}
    fields |= {"epochs": 1, "lr": 0.002, "latent_dim": 2, "seed": 3, "batch_size": 16, "device": "cpu"}
    run = get_run(train_model("vae", MODELS["vae"].Config.parse(fields)))
    first, second = "vae net=mlp hidden=4 latent_dim=2", "dataset=npz:own.npz val_size=10 test_size=10"
    assert sorted(run.name.split()) == sorted(f"{first} {second} epochs=1 batch_size=16 lr=0.002 seed=3".split())
    assert run.name.index("hidden=4") < run.name.index("dataset=") < run.name.index("seed=3")
    model = mlflow.MlflowClient().get_logged_model(artifacts.model_of(run.id))
    assert model.name == run.name.replace("npz:own.npz", "npz-own,npz").replace("0.002", "0,002")
    assert load_model(run.id).config.lr == 0.002


def test_the_command_lists_the_trainings(store: Path, command_here: Command, monkeypatch: pytest.MonkeyPatch):
    done = command_here("runs")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "no training yet" in done.stderr
    done = command_here("ppca", *(part for key, value in TINY.items() for part in (f"--{key}", str(value))))
    run = done.stdout.strip()
    assert done.stdout == f"{run}\n"
    *_, outcome, advice = done.stderr.splitlines()
    assert outcome.endswith("; converged")
    assert f"`elbolab evaluate {run[:8]}`" in advice
    done = command_here("evaluate", run[:8], "--images", "4")
    found = get_run(run).metrics
    exact, constant = found["test/log_px"], found["test/log_px_constant"]
    sentence = f"elbolab: test log p(x) {exact:.2f} nats; a constant image has {constant:.2f}"
    assert done.stderr.splitlines()[-1] == sentence
    fails(monkeypatch, "vae", epochs=1, lr=0.002)
    header, vae, ppca, end = command_here("runs").stdout.splitlines()
    assert end == "`elbolab resume RUN` resumes what is stopped, KILLED or FAILED here"
    assert header.split()[:4] == ["run", "model", "data", "state"]
    assert vae.split()[1:4] == ["vae", "mnist5k", "FAILED"]
    assert "lr=0.002" in vae
    assert ppca.split()[:4] == [run[:8], "ppca", "mnist5k", "converged"]
    metrics = get_run(run).metrics
    assert f"  ELBO {metrics['val/elbo']:.2f}  log p(x) {metrics['test/log_px']:.2f}  " in ppca
    assert "latent_dim=2" in ppca
    assert "data_dir" not in ppca
    only, _, more = command_here("runs", "--limit", "1").stdout.splitlines()[1:]
    assert only.split()[1] == "vae"
    assert "--limit" in more
