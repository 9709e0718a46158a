"""Trainings that are killed, interrupted or damaged end as if nothing had happened: equal weights, equal history."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Command, mlflow_run
from killed_trainings import digest, outcome

from elbolab.data.splits import Data
from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.support.errors import UserError
from elbolab.support.signals import postponed
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal
from elbolab.tracking.keys import PARENT
from elbolab.tracking.offline import find_unfinished
from elbolab.training import checkpoint, resume_state
from elbolab.training.backend import Backend
from elbolab.training.trainer import Event, train

TINY = {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8, "latent_dim": 4}
# Two epochs at a constant rate and two at a tenth of it, by scores that must not be lost.
PLATEAU = {
    "net": "mlp",
    "hidden": 20,
    "schedule": "plateau",
    "patience": 1,
    "patience_steps": 0,
    "min_improvement": 1e9,
    "epochs": 9,
    "beta_warmup": 0,
}
AS_OPTIONS = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]


def killed_trainings(store: Path, model: str, times: int, when: str, epochs: int) -> dict[str, Any]:
    script = REPOSITORY / "tests" / "killed_trainings.py"
    done = subprocess.run(
        [sys.executable, str(script), str(store), model, str(times), when, "0", str(epochs)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.scale
@pytest.mark.parametrize(
    ("model", "times", "when", "epochs"), [("latent_opt", 25, "anywhere", 25), ("vae", 5, "writing", 3)]
)
def test_killed_trainings_end_like_one_that_was_not(store: Path, model: str, times: int, when: str, epochs: int):
    done = killed_trainings(store, model, times, when, epochs)
    assert done["kills"] == times
    # Those that were resumed, and those in which a state had been written before.
    assert done["resumed"] >= times // 2
    assert done["with_state"] >= times // 2
    assert done["expected"]["status"] == "FINISHED"
    steps = list(range(1, epochs + 1))
    assert all([step for step, _ in values] == steps for values in done["expected"]["history"].values())
    assert done["found"] == [done["expected"]] * len(done["found"])
    assert not (store / "unfinished").exists()


class StoppedError(Exception):
    """What ends a training in the middle."""


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("cnn", {}),
        ("vae", {"likelihood": "bernoulli", "beta_warmup": 1.0}),
        ("iwae", {"iw_samples": 3, "gradient": "dreg"}),
        ("hierarchical", {"iw_samples": 2, "beta_warmup": 1.0, "pca_epochs": 1}),
        ("semi_amortized", {"refine_steps": 2}),
        ("latent_opt", {"latent_init": "normal"}),
        ("vae", {"sigma": "learned"}),
        ("latent_opt", {"sigma": "learned"}),
        ("latent_opt", {"likelihood": "discretised_logistic"}),
        ("ppca", {"epochs": 1}),
        ("vae", PLATEAU),
        ("latent_opt", PLATEAU),
        # One epoch from a PPCA's posteriors, and one from the encoder's.
        ("vae", {"pca_epochs": 1}),
    ],
)
def test_every_model_goes_on_from_any_step(
    model: str, fields: dict[str, Any], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    kind = MODELS[model]
    known = {key: value for key, value in {**TINY, "epochs": 2, **fields}.items() if key in kind.Config.model_fields}
    save = resume_state.ResumeState.save

    def fit(folder: Path, stop: int | None) -> tuple[str, dict[int, dict[str, float]]]:
        """The weights, and the metrics of the epochs that were reported, of a training stopped at a state."""
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        fitted, events, saved = kind(kind.Config.parse(known), digits.spec), list[Event](), 0

        def count(self: resume_state.ResumeState, at: resume_state.Position) -> None:
            nonlocal saved
            save(self, at)
            saved += 1
            if saved == stop:
                raise StoppedError

        monkeypatch.setattr(resume_state.ResumeState, "save", count)
        with suppress(StoppedError):
            train(fitted, digits, events.append, folder)
        metrics = {event.epoch: {**event.metrics, "train/images_per_s": 0, "train/seconds": 0} for event in events}
        return digest(fitted.state_dict()), metrics

    weights, history = fit(tmp_path / "whole", None)
    steps = -(-len(digits.train) // TINY["batch_size"])
    assert list(history) == list(range(1, 5 if "schedule" in fields else known["epochs"] + 1))
    later = (2 * steps, 2 * steps + 1, 3 * steps + 1, 4 * steps) if "schedule" in fields else ()
    for stop in (1, steps, steps + 1, *later):
        folder = tmp_path / f"stopped at {stop}"
        _, before = fit(folder, stop)
        after_weights, after = fit(folder, None)
        assert after_weights == weights
        assert {**before, **after} == history


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_a_damaged_state_is_noticed_and_the_one_before_it_used(
    damage: str, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    config = MODELS["vae"].Config.parse({**TINY, "epochs": 1})

    def fit(folder: Path) -> str:
        torch.manual_seed(0)
        model = MODELS["vae"](config, digits.spec)
        folder.mkdir(exist_ok=True)
        train(model, digits, lambda _: None, folder)
        return digest(model.state_dict())

    expected = fit(tmp_path / "one")
    older, newest = sorted((tmp_path / "one").glob("state-*.safetensors"))
    content = bytearray(newest.read_bytes())
    if damage == "torn":
        del content[len(content) // 2 :]
    else:
        content[-100] ^= 1
    newest.write_bytes(content)
    assert fit(tmp_path / "one") == expected
    said = capsys.readouterr().err
    assert newest.name in said
    assert "going on from the one before it" in said
    assert ("checksum differs" in said) == (damage == "altered")
    for damaged in (older, newest):
        damaged.write_bytes(content)
    for path in set((tmp_path / "one").glob("state-*.safetensors")) - {older, newest}:
        path.unlink()
    assert fit(tmp_path / "one") == expected
    said = capsys.readouterr().err.splitlines()
    assert ["going on from the one before it" in line for line in said] == [True, False]
    assert f"{older.name} " in said[1]
    assert said[1].endswith("; going on from the start")


def test_the_state_of_a_training_of_another_config_is_refused(digits: Data, tmp_path: Path):
    kind = MODELS["vae"]
    config = kind.Config.parse(TINY)
    model = kind(config, digits.spec)
    resume_state.ResumeState(tmp_path, model, model.optimizers()).save(resume_state.Position())
    other = kind(config.model_copy(update={"lr": 0.5}), digits.spec)
    with pytest.raises(UserError, match=f"{tmp_path} holds the state of a training of another config"):
        train(other, digits, lambda _: None, tmp_path)


def test_what_was_begun_on_a_cpu_goes_on_on_a_gpu(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A CPU keeps no random numbers of a GPU, which then has those that the seed gave it."""
    model = MODELS["vae"](MODELS["vae"].Config.parse(TINY), digits.spec)
    kept = resume_state.ResumeState(tmp_path, model, model.optimizers())
    kept.save(resume_state.Position(epoch=2, step=3))
    monkeypatch.setattr(type(model), "device", SimpleNamespace(type="cuda"))
    at = kept.restore()
    assert (at.epoch, at.step) == (2, 3)


# So many that a training of which an epoch is told has not ended before a signal gets to it.
LONG = 200


def stopped(store: Path, number: signal.Signals) -> str:
    """What a long training said that got a signal in its second epoch."""
    command = [sys.executable, "-m", "elbolab", "vae", *AS_OPTIONS, "--epochs", str(LONG), "--schedule", "cosine"]
    with subprocess.Popen(command, cwd=store, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2 " in line.replace("/", " "):
                break
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    return said


@pytest.mark.scale
def test_an_interrupted_run_goes_on_with_its_own_parameters_or_not_at_all(command: Command, store: Path):
    said = stopped(store, signal.SIGTERM)
    found = re.search(r"`elbolab resume (\w+)` resumes it", said)
    assert found, said
    run_id = found[1]
    assert mlflow_reader.get_run(run_id).status == "KILLED"
    with pytest.raises(UserError, match=f"lr=0.5 was 0.001 in run {run_id}, whose parameters stay"):
        resume(run_id, "vae", {"lr": 0.5})
    with pytest.raises(UserError, match="model=cnn was vae"):
        resume(run_id, "cnn")
    with pytest.raises(UserError, match="run 'nothing' is not on"):
        resume("nothing")
    # While one process is at it no other may be.
    folder = find_unfinished(run_id)
    assert folder is not None
    journal = Journal(folder)
    with pytest.raises(UserError, match="in use by another process"):
        resume(run_id)
    journal.close(remove=False)
    other = mlflow_reader.get_run(resume(run_id, "vae", {"epochs": 1}, new_run=True))
    assert other.id != run_id
    assert (other.params["latent_dim"], other.params["epochs"]) == ("4", "1")

    done = command("vae", "--resume", run_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == run_id
    assert mlflow_reader.get_run(run_id).status == "FINISHED"
    steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, "val/elbo")]
    assert steps == list(range(1, LONG + 1))
    assert not (store / "unfinished").exists()


@pytest.mark.scale
def test_a_run_whose_process_is_gone_is_closed_by_sync_and_goes_on_all_the_same(store: Path, command: Command):
    stopped(store, signal.SIGKILL)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "RUNNING"
    header, line, end = command("runs").stdout.splitlines()
    assert header.split()[:4] == ["run", "model", "data", "state"]
    assert line.split()[:4] == [run.info.run_id[:8], "vae", "mnist5k", "stopped"]
    assert end == "`elbolab resume RUN` resumes what is stopped, KILLED or FAILED here"
    assert command("sync").returncode == 0
    assert command("runs").stdout.splitlines()[1].split()[3] == "KILLED"
    assert mlflow_reader.get_run(run.info.run_id).status == "KILLED"
    assert resume(run.info.run_id) == run.info.run_id
    assert mlflow_reader.get_run(run.info.run_id).status == "FINISHED"
    assert outcome(run.info.run_id)["history"]["val/elbo"][-1][0] == LONG


def break_down(*arguments: Any) -> None:
    raise RuntimeError("the roof came down")


def test_data_that_changed_since_the_run_began_are_refused(store: Path, monkeypatch: pytest.MonkeyPatch):
    images, labels = np.full((60, 8, 8), 255, np.uint8), np.arange(60) % 3
    np.savez(store / "own.npz", images=images, labels=labels)
    config = MODELS["vae"].Config.parse({"dataset": f"npz:{store}/own.npz", "latent_dim": 4, "epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", break_down)
        with pytest.raises(RuntimeError, match="the roof"):
            train_model("vae", config)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    images[-1, -1, -1] = 1
    np.savez(store / "own.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=rf"own.npz has the digest \w+ now and had {run.data.tags['data.digest']} when"):
        resume(run.info.run_id)
    images[-1, -1, -1] = 255
    np.savez(store / "own.npz", images=images, labels=labels)
    assert resume(run.info.run_id) == run.info.run_id


def test_a_training_of_several_processes_is_not_gone_on_with(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "processes", 2)
        patch.setattr(tracking.RunWriter, "report", break_down)
        with pytest.raises(RuntimeError, match="the roof"):
            train_model("vae", MODELS["vae"].Config.parse({**TINY, "epochs": 1}))
    assert "resumes it" not in capsys.readouterr().err
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    with pytest.raises(UserError, match=f"run {run.info.run_id} was trained by 2 processes, .* --new-run`$"):
        resume(run.info.run_id)
    assert mlflow_reader.get_run(resume(run.info.run_id, new_run=True)).status == "FINISHED"


@pytest.mark.scale
@pytest.mark.parametrize(("entry", "parameter"), [("resume", "run"), ("vae", "resume")])
def test_a_run_goes_on_by_mlflow_run(store: Path, entry: str, parameter: str):
    stopped(store, signal.SIGTERM)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    # A training is gone on with in the folder in which it was begun, and a project's commands work in its own.
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(REPOSITORY / name, store)
    done = mlflow_run(store, entry, f"{parameter}={run.info.run_id}", project=store)
    assert done.returncode == 0, done.stderr
    assert mlflow_reader.get_run(run.info.run_id).status == "FINISHED"
    (call,) = [found for found in mlflow.MlflowClient().search_runs(["0"]) if found.info.run_id != run.info.run_id]
    assert (call.data.tags["elbolab.kind"], call.data.tags[PARENT]) == ("resume call", run.info.run_id)
    assert call.info.status == "FINISHED"


def test_a_crash_is_failed_with_its_reason_and_goes_on(store: Path, monkeypatch: pytest.MonkeyPatch):
    config = MODELS["vae"].Config.parse({**TINY, "epochs": 3})
    expected = outcome(train_model("vae", config))
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    report = tracking.RunWriter.report

    def in_the_second(self: tracking.RunWriter, event: Event) -> None:
        if event.epoch == 2:
            break_down()
        report(self, event)

    monkeypatch.setattr(tracking.RunWriter, "report", in_the_second)
    with pytest.raises(RuntimeError, match="the roof"):
        train_model("vae", config)
    monkeypatch.setattr(tracking.RunWriter, "report", report)
    (failed,) = mlflow.MlflowClient().search_runs(["0"], "attributes.status = 'FAILED'")
    assert failed.data.tags["failure"] == "RuntimeError: the roof came down"
    resume(failed.info.run_id)
    assert outcome(failed.info.run_id) == expected
    assert "failure" not in mlflow_reader.get_run(failed.info.run_id).tags


def test_a_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_last_good_state(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    config = MODELS["vae"].Config.parse({**TINY, "epochs": 3, "lr": 1e12})
    with pytest.raises(UserError) as error:
        train_model("vae", config)
    found = re.match(r"the loss is (?:nan|inf) at step (\d) of epoch 1, because of .*log p\(x\|z\)", str(error.value))
    assert found, error.value
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert "at step" in run.data.tags["failure"]
    kept = [checkpoint.read(path) for path in sorted(store.glob("unfinished/*/state-*.safetensors"))]
    assert kept[-1][1]["step"] == int(found[1]) - 1
    assert all(value.isfinite().all() for tensors, _ in kept for value in tensors.values())


def test_what_the_last_step_spoils_is_no_finished_training(digits: Data, tmp_path: Path):
    """The loss of the only step is finite, and that of the weights which it leaves is not."""
    config = MODELS["vae"].Config.parse({**TINY, "batch_size": 64, "epochs": 1, "lr": 1e30})
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"^val/\w+ is (nan|inf|-inf) at the end of epoch 1; lower lr$"):
        train(MODELS["vae"](config, digits.spec), digits, lambda _: None, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def signal_twice() -> None:
    """Get Ctrl-C while one is postponed already."""
    with postponed() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was not heeded")


def test_those_within_another_hear_of_its_signal_and_the_outermost_heeds_it():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outer, first, second = ExitStack(), ExitStack(), ExitStack()
        interruption = outer.enter_context(postponed())
        # As trainings beside each other overlap.
        for each in (first, second):
            assert each.enter_context(postponed()) is interruption
        first.close()
        signal.raise_signal(signal.SIGINT)
        second.close()
        assert interruption
        with pytest.raises(KeyboardInterrupt):
            outer.close()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with postponed() as later:
            assert not later
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_does_not_wait():
    # Whoever starts the tests in the background may have Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal_twice()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_while_an_object_is_freed_is_not_lost():
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with postponed() as interruption, pytest.raises(KeyboardInterrupt), interruption.at_once():
            # Python writes that it ignores what is raised here, and goes on.
            Freed()
    finally:
        signal.signal(signal.SIGINT, before)
