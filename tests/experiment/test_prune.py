"""What a rule deletes, and what stays because something else needs it."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Metric, ViewType

from elbolab import EvaluateConfig, evaluate_run, load_model
from elbolab.config.schema import CompareConfig, PromoteConfig, PruneConfig
from elbolab.experiment.prune import plan
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.registry.versions import promote
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import KIND

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY: dict[str, Any] = {"train_size": 40, "val_size": 10, "test_size": 10, "latent_dim": 2}
NETS: dict[str, Any] = {"epochs": 1, "net": "mlp", "hidden": 4}
DAY = 86_400_000


def trained(model: str = "ppca", **fields: Any) -> str:
    known = MODELS[model].Config.model_fields
    values = {key: value for key, value in (TINY | fields).items() if key in known}
    return train_model(model, MODELS[model].Config.parse(values))


def left() -> set[str]:
    return {run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])}


def test_a_rule_is_listed_and_asked_about_and_then_only_that_is_deleted(store: Path, command_here: Command):
    one, other, third = trained(), trained(latent_dim=3), trained("vae", **NETS)
    with mlflow.start_run() as foreign:
        pass
    refused = command_here("prune")
    assert refused.returncode == 2
    assert "name the runs by older_than, model or status" in refused.stderr
    shown = command_here("prune", "--model", "ppca", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert {line.split()[1].rstrip(",") for line in shown.stdout.splitlines() if line.startswith("named: ")} == {
        one[:8],
        other[:8],
    }
    # Nobody is there to be asked.
    asked = command_here("prune", "--model", "ppca")
    assert asked.returncode == 2
    assert "add --yes" in asked.stderr
    assert left() == {one, other, third, foreign.info.run_id}
    done = command_here("prune", "--model", "ppca", "--yes")
    assert done.returncode == 0, done.stderr
    assert left() == {third, foreign.info.run_id}
    # They are in MLflow's trash, from where a run is brought back whole.
    client = mlflow.MlflowClient()
    deleted = client.search_runs(["0"], run_view_type=ViewType.DELETED_ONLY)
    assert {run.info.run_id for run in deleted} == {one, other}
    client.restore_run(one)
    assert load_model(one).config.latent_dim == 2
    assert command_here("prune", "--older-than", "1", "--yes").returncode == 0
    assert left() == {one, third, foreign.info.run_id}


def test_what_something_else_needs_stays(store: Path, monkeypatch: pytest.MonkeyPatch):
    cnn, classified = trained("cnn", epochs=1), trained("vae", **NETS)
    evaluate_run(classified, EvaluateConfig(samples=2, images=4, simulated=0, budget=1, classifier=cnn))
    promote(classified, PromoteConfig(name="digits"))
    source = trained("vae", **NETS, latent_dim=3)
    started = trained("latent_opt", **NETS, latent_dim=3, latent_init=f"encoder:{source}")
    shown, superfluous = trained(latent_dim=4), trained(latent_dim=5, sigma=0.5)
    page = compare(CompareConfig.parse({"run": [started, shown]}))
    comparison = left() - {cnn, classified, source, started, shown, superfluous}
    with tracking.start_run("train", "under way", {"model": "vae"}, {}) as running:
        while KIND not in mlflow_reader.get_run(running.id).tags:
            time.sleep(0.1)
        found = plan(PruneConfig(older_than=0))
        assert {run.id for run in found.runs} == {superfluous, *comparison}
        assert found.kept[shown] == f"{page.parent.name} shows it"
        assert {run: why.split(" ")[-1] for run, why in found.kept.items()} == {
            running.id: "gone",
            classified: "digits",
            cnn: "it",
            started: "it",
            shown: "it",
            source: "it",
        }
    # Nor is what others lean on deleted where the rule does not name these.
    for model, needed in (("vae", source), ("cnn", cnn)):
        assert needed in plan(PruneConfig(model=model)).kept
    # In any experiment, and by the comparisons on the server, wherever their reports are.
    (page.parent / "runs.csv").unlink()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    trained("latent_opt", **NETS, latent_dim=3, start=source)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    mlflow.MlflowClient().delete_run(started)
    assert source in plan(PruneConfig(model="vae")).kept
    assert shown in plan(PruneConfig(model="ppca")).kept
    (comparison_run,) = comparison
    found = plan(PruneConfig(older_than=0))
    assert {shown, superfluous, comparison_run} <= {run.id for run in found.runs}
    mlflow.MlflowClient().restore_run(started)
    page = compare(CompareConfig.parse({"run": [started, shown]}))
    # A checkpoint is needed by nobody but who asks for the run itself.
    found = plan(PruneConfig(older_than=0, what="checkpoints"))
    assert {cnn, source} < {run.id for run in found.runs}
    assert classified not in {run.id for run in found.runs}
    with pytest.raises(UserError, match=r"it has no runs\.csv; name one that has"):
        plan(PruneConfig(older_than=0, report=("nowhere",)))


def test_the_best_trial_of_a_study_stays_with_its_study(store: Path):
    client = mlflow.MlflowClient()
    with tracking.start_run("study", "sizes", {"study": "sizes", "metrics": "val/loss"}, {}) as study:
        pass
    trials = []
    for value in (3.0, 1.0, 2.0):
        tags = {"elbolab.kind": "trial", "mlflow.parentRunId": study.id}
        trials.append(client.create_run("0", tags=tags).info.run_id)
        client.log_batch(trials[-1], [Metric("val/loss", value, 0, 1)])
        client.set_terminated(trials[-1])
    # Of a trial that was pruned its last value is no result.
    client.create_run("0", tags={"elbolab.kind": "trial", "mlflow.parentRunId": study.id})
    stopped = client.search_runs(["0"])[0].info.run_id
    client.log_batch(stopped, [Metric("val/loss", 0.5, 0, 1)])
    client.set_terminated(stopped, "KILLED")
    found = plan(PruneConfig(status="FINISHED"))
    assert {run.id for run in found.runs} == {trials[0], trials[2]}
    assert set(found.kept) == {trials[1], study.id}


def test_checkpoints_and_pictures_are_deleted_alone(store: Path, command_here: Command):
    run = trained("vae", **NETS)
    other = trained()
    assert artifacts.list_artifacts(run, "checkpoints")
    done = command_here("prune", "--model", "vae", "--what", "checkpoints", "--yes")
    assert done.returncode == 0, done.stderr
    assert not artifacts.list_artifacts(run, "checkpoints")
    assert artifacts.list_artifacts(run, "images")
    assert artifacts.list_artifacts(other, "checkpoints")
    assert load_model(run).config.hidden == 4
    assert command_here("prune", "--model", "vae", "--what", "pictures", "--yes").returncode == 0
    assert not artifacts.list_artifacts(run, "images")
    # Nothing is left to delete, which is no error.
    done = command_here("prune", "--model", "vae", "--what", "pictures", "--yes")
    assert (done.returncode, done.stdout) == (0, "to delete: the pictures of 0 runs; to stay: 0 of those named\n")
    assert command_here("prune", "--model", "vae", "--what", "models", "--yes").returncode == 0
    with pytest.raises(UserError, match=r"has no trained model on .*: it logged none, or that was deleted"):
        load_model(run)
    evaluate_run(other, EvaluateConfig(samples=2, images=4))
    assert command_here("prune", "--model", "ppca", "--what", "models", "--yes").returncode == 0
    with pytest.raises(UserError, match="has no trained model on"):
        promote(other, PromoteConfig(name="digits"))
    assert not mlflow.search_registered_models()
    wrong = command_here("prune", "--model", "vea")
    assert wrong.returncode == 2
    assert "model='vea' does not exist; there are: cnn, " in wrong.stderr


def test_old_is_by_days_and_a_training_that_can_be_resumed_stays(store: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any) -> None:
        raise RuntimeError("the roof came down")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", broken)
        with pytest.raises(RuntimeError, match="the roof"):
            trained()
    (failed,) = left()
    assert plan(PruneConfig(status="FAILED")).kept[failed] == f"`elbolab resume {failed[:8]}` resumes it"
    client = mlflow.MlflowClient()
    now = mlflow_reader.get_run(failed).start
    old, young = (
        client.create_run("0", start_time=now - days * DAY, tags={"elbolab.kind": "train"}).info.run_id
        for days in (8, 6)
    )
    for run in (old, young):
        client.set_terminated(run)
    assert {run.id for run in plan(PruneConfig(older_than=7)).runs} == {old}
