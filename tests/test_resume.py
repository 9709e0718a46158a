"""Trainings that are killed, interrupted or damaged end as if nothing had happened: equal weights, equal history."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from conftest import REPOSITORY, Command, mlflow_run
from killed_trainings import digest, outcome

from elbolab import checkpoint, records, states, tracker
from elbolab.data import Data
from elbolab.errors import UserError
from elbolab.experiment import resume, train_model
from elbolab.interrupts import postponed
from elbolab.models import MODELS
from elbolab.spool import Spool
from elbolab.tracker import PARENT
from elbolab.trainer import Event, train

TINY = {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8, "latent_dim": 4}
AS_OPTIONS = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]


def killed_trainings(store: Path, model: str, times: int, when: str, epochs: int) -> dict[str, Any]:
    script = Path(__file__).with_name("killed_trainings.py")
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
        ("semi_amortized", {"refine_steps": 2}),
        ("latent_opt", {"latent_init": "normal"}),
        ("ppca", {"epochs": 1}),
    ],
)
def test_every_model_goes_on_from_any_step(
    model: str, fields: dict[str, Any], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states, "LEAST_SECONDS", 0)
    monkeypatch.setattr(states, "TIMES_ITS_COST", 0)
    kind = MODELS[model]
    known = {key: value for key, value in {**TINY, "epochs": 2, **fields}.items() if key in kind.Config.model_fields}
    save = states.States.save

    def fit(folder: Path, stop: int | None) -> tuple[str, dict[int, dict[str, float]]]:
        """The weights, and the metrics of the epochs that were reported, of a training stopped at a state."""
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        fitted, events, saved = kind(kind.Config.parse(known), digits.spec), list[Event](), 0

        def count(self: states.States, at: states.Position) -> None:
            nonlocal saved
            save(self, at)
            saved += 1
            if saved == stop:
                raise StoppedError

        monkeypatch.setattr(states.States, "save", count)
        with suppress(StoppedError):
            train(fitted, digits, events.append, folder)
        metrics = {event.epoch: {**event.metrics, "train/images_per_s": 0} for event in events}
        return digest(fitted.state_dict()), metrics

    weights, history = fit(tmp_path / "whole", None)
    steps = -(-len(digits.train) // TINY["batch_size"])
    for stop in (1, steps, steps + 1):
        folder = tmp_path / f"stopped at {stop}"
        _, before = fit(folder, stop)
        after_weights, after = fit(folder, None)
        assert after_weights == weights
        assert {**before, **after} == history


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_a_damaged_state_is_noticed_and_the_one_before_it_used(
    damage: str, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(states, "LEAST_SECONDS", 0)
    monkeypatch.setattr(states, "TIMES_ITS_COST", 0)
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
    older.unlink()


def stopped(store: Path, number: signal.Signals, epochs: int) -> str:
    """What a training said that got a signal in its second epoch."""
    command = [sys.executable, "-m", "elbolab", "vae", *AS_OPTIONS, "--epochs", str(epochs)]
    with subprocess.Popen(command, cwd=store, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2/" in line:
                break
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    return said


def test_an_interrupted_run_goes_on_with_its_own_parameters_or_not_at_all(command: Command, store: Path):
    said = stopped(store, signal.SIGTERM, 40)
    found = re.search(r"`elbolab resume (\w+)` goes on with it", said)
    assert found, said
    run_id = found[1]
    assert records.get_run(run_id).status == "KILLED"
    with pytest.raises(UserError, match=f"lr=0.5 was 0.001 in run {run_id}, whose parameters stay"):
        resume(run_id, "vae", {"lr": 0.5})
    with pytest.raises(UserError, match="model=cnn was vae"):
        resume(run_id, "cnn")
    with pytest.raises(UserError, match="run 'nothing' has nothing to go on with"):
        resume("nothing")
    # While one process is at it no other may be.
    folder = tracker.find(run_id)
    assert folder is not None
    spool = Spool(folder)
    with pytest.raises(UserError, match="in use by another process"):
        resume(run_id)
    spool.close(remove=False)
    other = records.get_run(resume(run_id, "vae", {"epochs": 1}, new_run=True))
    assert other.id != run_id
    assert (other.params["latent_dim"], other.params["epochs"]) == ("4", "1")

    done = command("vae", "--resume", run_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == run_id
    assert records.get_run(run_id).status == "FINISHED"
    steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, "val/elbo")]
    assert steps == list(range(1, 41))
    assert not (store / "unfinished").exists()


def test_a_run_whose_process_is_gone_is_closed_by_sync_and_goes_on_all_the_same(store: Path, command: Command):
    stopped(store, signal.SIGKILL, 40)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "RUNNING"
    assert command("sync").returncode == 0
    assert records.get_run(run.info.run_id).status == "KILLED"
    assert resume(run.info.run_id) == run.info.run_id
    assert records.get_run(run.info.run_id).status == "FINISHED"
    assert outcome(run.info.run_id)["history"]["val/elbo"][-1][0] == 40


@pytest.mark.scale
def test_a_run_goes_on_by_mlflow_run(store: Path):
    stopped(store, signal.SIGTERM, 40)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    # A training is gone on with in the folder in which it was begun, and a project's commands work in its own.
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(REPOSITORY / name, store)
    done = mlflow_run(store, "resume", f"run={run.info.run_id}", project=store)
    assert done.returncode == 0, done.stderr
    assert records.get_run(run.info.run_id).status == "FINISHED"
    (call,) = [found for found in mlflow.MlflowClient().search_runs(["0"]) if found.info.run_id != run.info.run_id]
    assert (call.data.tags["elbolab.kind"], call.data.tags[PARENT]) == ("resume call", run.info.run_id)
    assert call.info.status == "FINISHED"


def test_a_crash_is_failed_with_its_reason_and_goes_on(store: Path, monkeypatch: pytest.MonkeyPatch):
    config = MODELS["vae"].Config.parse({**TINY, "epochs": 3})
    expected = outcome(train_model("vae", config))
    monkeypatch.setattr(states, "LEAST_SECONDS", 0)
    monkeypatch.setattr(states, "TIMES_ITS_COST", 0)
    report = tracker.Tracker.report

    def break_down(self: tracker.Tracker, event: Event) -> None:
        if event.epoch == 2:
            raise RuntimeError("the roof came down")
        report(self, event)

    monkeypatch.setattr(tracker.Tracker, "report", break_down)
    with pytest.raises(RuntimeError, match="the roof"):
        train_model("vae", config)
    monkeypatch.setattr(tracker.Tracker, "report", report)
    (failed,) = mlflow.MlflowClient().search_runs(["0"], "attributes.status = 'FAILED'")
    assert failed.data.tags["failure"] == "RuntimeError: the roof came down"
    resume(failed.info.run_id)
    assert outcome(failed.info.run_id) == expected
    assert "failure" not in records.get_run(failed.info.run_id).tags


def test_a_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_last_good_state(store: Path):
    config = MODELS["vae"].Config.parse({**TINY, "epochs": 3, "lr": 1e12})
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d of epoch 1, because of .*log p\(x\|z\)"):
        train_model("vae", config)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert "at step" in run.data.tags["failure"]
    for path in store.glob("unfinished/*/state-*.safetensors"):
        tensors, _ = checkpoint.read(path)
        assert all(value.isfinite().all() for value in tensors.values())


def signal_twice() -> None:
    """Get Ctrl-C while one is postponed already."""
    with postponed() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was not heeded")


def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt):
        signal_twice()
