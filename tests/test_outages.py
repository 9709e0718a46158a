"""The tracking server goes away, hangs, fails or loses its answers: trainings go on, and it has everything once."""

import os
import resource
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Postgres, free_port, mlflow_server

from elbolab import load_model, records, tracker
from elbolab.config import EvaluateConfig
from elbolab.errors import UserError
from elbolab.experiment import evaluate_run, resume, train_model
from elbolab.models import MODELS
from elbolab.spool import Spool
from elbolab.trainer import Event

pytestmark = pytest.mark.scale
EPOCHS = 5
CONFIG = MODELS["vae"].Config.parse(
    {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8, "latent_dim": 4, "epochs": EPOCHS}
)


class Wire(socketserver.ThreadingTCPServer):
    """Stands before a server: ``pass`` hands on, ``cut`` closes, ``hang`` never answers, ``fail`` answers 500, and
    ``deaf`` hands requests on but loses the answers."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, behind: int) -> None:
        self.mode, self.seen, self.behind = "pass", 0, behind
        super().__init__(("127.0.0.1", port), Call)


class Call(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire: Any = self.server
        wire.seen += 1
        if (mode := wire.mode) == "cut":
            return
        if mode == "hang":
            while wire.mode == "hang":
                threading.Event().wait(0.1)
            return
        if mode == "fail":
            self.request.settimeout(0.5)
            with suppress(TimeoutError):
                while self.request.recv(65536):
                    pass
            self.request.sendall(
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        with socket.create_connection(("127.0.0.1", wire.behind)) as there:
            back = threading.Thread(target=_carry, args=(there, self.request, wire), daemon=True)
            back.start()
            with suppress(OSError):
                while wire.mode in ("pass", "deaf") and (data := self.request.recv(65536)):
                    there.sendall(data)
                there.shutdown(socket.SHUT_WR)
            back.join()


def _carry(source: socket.socket, sink: socket.socket, wire: Wire) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if wire.mode == "deaf":
                sink.close()
                return
            sink.sendall(data)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db", port):
        yield port


@pytest.fixture
def wire(server: int, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """What stands between the tracker and the server, both in the tracker's environment."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(tracker, "START_SECONDS", 3)
    port = free_port()
    with Wire(port, server) as between:
        threading.Thread(target=between.serve_forever, args=(0.05,), daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        yield between
        between.mode = "cut"
        between.shutdown()


@contextmanager
def at_epochs(monkeypatch: pytest.MonkeyPatch, wire: Wire, modes: dict[int, str]) -> Iterator[None]:
    """Change how the wire is before these epochs are reported."""
    report = tracker.Tracker.report

    def watched(self: tracker.Tracker, event: Event) -> None:
        wire.mode = modes.get(event.epoch, wire.mode)
        report(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(tracker.Tracker, "report", watched)
        yield


def complete(run_id: str) -> None:
    """The server has all of a training, and each value once."""
    run = records.get_run(run_id)
    assert run.status == "FINISHED"
    assert run.params["latent_dim"] == "4"
    client = mlflow.MlflowClient()
    for key in ("train/loss", "val/elbo", "val/kl", "train/images_per_s"):
        assert [metric.step for metric in client.get_metric_history(run_id, key)] == list(range(1, EPOCHS + 1))
    assert list(records.step_images(run_id, "samples")) == [1, 5]
    assert len(records.list_artifacts(run_id, "images")) == 3 * 2 * 2
    assert set(records.list_artifacts(run_id)) >= {"checkpoints", "config.json", "figures", "images"}
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert len(outputs.model_outputs) == 1
    assert load_model(run_id).config == CONFIG
    assert not tracker.UNFINISHED.exists()


@pytest.mark.parametrize("mode", ["cut", "hang", "fail", "deaf"])
def test_a_server_that_is_away_for_a_while_has_everything_once(
    wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with at_epochs(monkeypatch, wire, {2: mode, 4: "pass"}):
        run_id = train_model("vae", CONFIG)
    complete(run_id)


@pytest.mark.parametrize("mode", ["cut", "hang"])
def test_without_the_server_a_run_is_complete_after_sync(
    wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracker, "END_SECONDS", 1)
    wire.mode = mode
    name = train_model("vae", CONFIG)
    said = capsys.readouterr().err
    assert "`elbolab sync` sends them" in said
    assert tracker.find(name) is not None
    with pytest.raises(UserError, match=r"\d+ records are not sent"):
        tracker.send_unfinished()
    wire.mode = "pass"
    (line,) = tracker.send_unfinished()
    complete(line.split()[1].rstrip(":"))
    assert tracker.send_unfinished() == []


def test_an_answer_lost_anywhere_duplicates_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Of ever more requests the answer is lost, each of which the server has carried out."""
    monkeypatch.setattr(tracker, "END_SECONDS", 1)
    wire.mode = "cut"
    train_model("vae", CONFIG)
    done = threading.Event()

    def lose_after(calls: int) -> None:
        while wire.seen < calls and not done.wait(0.001):
            pass
        wire.mode = "deaf"

    # The run itself, its values, files, images, the model.
    for more in range(1, 60, 4):
        wire.mode = "pass"
        done.clear()
        watcher = threading.Thread(target=lose_after, args=(wire.seen + more,))
        watcher.start()
        with suppress(UserError):
            tracker.send_unfinished()
        done.set()
        watcher.join()
        if not tracker.UNFINISHED.exists():
            break
    wire.mode = "pass"
    tracker.send_unfinished()
    (run,) = records.find_runs(params={"model": "vae"}, limit=1)
    complete(run.id)


def test_an_evaluation_is_not_lost_with_the_server(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    run_id = train_model("vae", CONFIG)
    monkeypatch.setattr(tracker, "END_SECONDS", 1)
    attached = tracker.attached

    @contextmanager
    def away(run: str) -> Iterator[tracker.Tracker]:
        wire.mode = "cut"
        with attached(run) as track:
            yield track

    monkeypatch.setattr(tracker, "attached", away)
    found = evaluate_run(run_id, EvaluateConfig(samples=5, images=5))
    wire.mode = "pass"
    assert "test/log_px" not in records.get_run(run_id).metrics
    tracker.send_unfinished()
    run = records.get_run(run_id)
    assert run.metrics["test/log_px"] == pytest.approx(found["test/log_px"])
    assert "evaluation.samples" in run.tags
    assert run.status == "FINISHED"
    complete(run_id)


def test_a_server_on_postgresql_killed_for_twenty_seconds_and_its_database_restarted(
    store: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
):
    """The training goes on meanwhile; afterwards the database holds all of it once."""
    runs, port = f"{postgres.url}/mlflow", free_port()
    report, reported = tracker.Tracker.report, []
    servers = ExitStack()
    servers.enter_context(mlflow_server(store, runs, port))
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")

    def trouble() -> None:
        servers.close()
        time.sleep(20)
        servers.enter_context(mlflow_server(store, runs, port))
        postgres.stop()
        time.sleep(3)
        postgres.start()

    troubles = threading.Thread(target=trouble)

    def watched(self: tracker.Tracker, event: Event) -> None:
        if event.epoch == 2:
            troubles.start()
        report(self, event)
        reported.append(event.epoch)

    monkeypatch.setattr(tracker.Tracker, "report", watched)
    try:
        run_id = train_model("vae", CONFIG)
        # An epoch takes a fraction of a second: with the server away they are all done.
        assert reported == list(range(1, EPOCHS + 1))
        troubles.join()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        tracker.send_unfinished()
        complete(run_id)
    finally:
        troubles.join()
        servers.close()


def test_a_store_of_files_that_takes_nothing_holds_up_no_value(store: Path, monkeypatch: pytest.MonkeyPatch):
    """The store's folder is a file; the values arrive, the run ends once its files are there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "END_SECONDS", 3)
    (store / "kept").write_text("in the way")
    with mlflow_server(store, f"sqlite:///{store}/runs.db", free_port()):
        run_id = train_model("vae", CONFIG)
        client = mlflow.MlflowClient()
        assert len(client.get_metric_history(run_id, "val/elbo")) == EPOCHS
        assert client.get_run(run_id).info.status == "RUNNING"
        os.remove(store / "kept")
        tracker.send_unfinished()
        complete(run_id)


@pytest.mark.parametrize("room", [1_000_000, 1500])
def test_without_room_for_its_states_a_training_stops_and_goes_on_later(wire: Wire, store: Path, room: int):
    """The system lets the process write no file of more than ``room`` bytes: no state, or not even its journal."""
    options = [part for key, value in CONFIG.changes().items() for part in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "elbolab", "vae", *options],
        cwd=store,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = tracker.UNFINISHED.glob("*")
    if room > 10_000:
        run = records.get_run(Spool(folder).state["run_id"])
        assert run.status == "FAILED"
        assert "cannot be written" in run.tags["failure"]
    complete(resume(folder.name))


def test_a_server_that_refuses_says_so_before_the_training(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "123456789")
    with pytest.raises(UserError, match=r"refuses the run: .*123456789"):
        train_model("vae", CONFIG)
    assert not tracker.UNFINISHED.exists()
