"""The tracking server goes away, hangs, fails or loses its answers: trainings go on, and it has everything once."""

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import Postgres, free_port, mlflow_server, wait_for
from mlflow.entities import LoggedModelStatus

from elbolab import load_model
from elbolab.config.schema import EvaluateConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.registry.packaging import log_model
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal, read_state
from elbolab.tracking.keys import SPOOL
from elbolab.tracking.offline import UNFINISHED, find_unfinished, send_unfinished
from elbolab.training import resume_state
from elbolab.training.trainer import Event

pytestmark = pytest.mark.scale
EPOCHS = 5
CONFIG = MODELS["vae"].Config.parse(
    {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8, "latent_dim": 4, "epochs": EPOCHS}
)


class StoppedError(Exception):
    """What ends a training in the middle."""


def stop(*arguments: Any) -> None:
    raise StoppedError


class Wire(ThreadingHTTPServer):
    """Stands before a server: ``pass`` hands on, ``cut`` closes, ``hang`` never answers, ``fail`` answers 500,
    ``refuse`` 403, and ``deaf`` hands requests on but loses the answers, as it does once for a path in ``loses``.

    ``seen`` counts the requests, ``lost`` those without their answer; from request ``deaf_from`` on it is deaf.
    """

    def __init__(self, port: int, behind: int) -> None:
        self.mode, self.behind, self.loses, self.deaf_from = "pass", behind, "", math.inf
        self.seen = self.lost = 0
        super().__init__(("127.0.0.1", port), Call)


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        wire: Any = self.server
        body = self._body()
        wire.seen += 1
        mode = "deaf" if wire.seen >= wire.deaf_from else wire.mode
        if wire.loses and self.path.endswith(wire.loses):
            mode, wire.loses = "deaf", ""
        if mode != "pass":
            wire.lost += 1
            self.close_connection = True
        if mode in ("fail", "refuse"):
            self.send_error(500 if mode == "fail" else 403)
        while mode == wire.mode == "hang":
            time.sleep(0.1)
        if mode not in ("pass", "deaf"):
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() != "transfer-encoding"}
        there = HTTPConnection("127.0.0.1", wire.behind)
        there.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        with there.getresponse() as found:
            content = found.read()
            if mode == "pass":
                self.send_response_only(found.status)
                for key, value in found.getheaders():
                    if key.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - the names of http.server

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        pass


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
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setattr(tracking, "START_SECONDS", 3)
    monkeypatch.setattr(tracking, "END_SECONDS", 120)
    port = free_port()
    with Wire(port, server) as between:
        threading.Thread(target=between.serve_forever, args=(0.05,), daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        yield between
        between.mode = "cut"
        between.shutdown()


@contextmanager
def at_epochs(monkeypatch: pytest.MonkeyPatch, wire: Wire, modes: dict[int, str]) -> Iterator[None]:
    """Change how the wire is before these epochs are reported, and not back before a request met it."""
    report = tracking.RunWriter.report

    def watched(self: tracking.RunWriter, event: Event) -> None:
        if modes.get(event.epoch) == "pass":
            wait_for(lambda: wire.lost > 0)
        wire.mode = modes.get(event.epoch, wire.mode)
        report(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", watched)
        yield


def complete(run_id: str) -> None:
    """The server has all of a training, and each value once; and there is one such run."""
    run = mlflow_reader.get_run(run_id)
    assert run.status == "FINISHED"
    assert run.params["latent_dim"] == "4"
    client = mlflow.MlflowClient()
    for key in ("train/loss", "val/elbo", "val/kl", "train/images_per_s"):
        assert [metric.step for metric in client.get_metric_history(run_id, key)] == list(range(1, EPOCHS + 1))
    assert list(artifacts.step_images(run_id, "samples")) == [1, 5]
    assert len(artifacts.list_artifacts(run_id, "images")) == 3 * 2 * 2
    assert set(artifacts.list_artifacts(run_id)) >= {"checkpoints", "config.json", "figures", "images"}
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert len(outputs.model_outputs) == 1
    (model,) = client.search_logged_models([run.experiment], f"source_run_id = '{run_id}'")
    assert model.status == LoggedModelStatus.READY
    twins = client.search_runs([run.experiment], f"tags.`{SPOOL}` = '{run.tags[SPOOL]}'")
    assert [twin.info.run_id for twin in twins] == [run_id]
    assert load_model(run_id).config == CONFIG
    assert not UNFINISHED.exists()


@pytest.mark.parametrize("mode", ["cut", "hang", "fail", "deaf"])
def test_a_server_that_is_away_for_a_while_has_everything_once(
    wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if mode == "hang":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with at_epochs(monkeypatch, wire, {2: mode, 4: "pass"}):
        run_id = train_model("vae", CONFIG)
    complete(run_id)


@pytest.mark.parametrize("mode", ["cut", "hang"])
def test_without_the_server_a_run_is_complete_after_sync(
    wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracking, "END_SECONDS", 1)
    if mode == "hang":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    wire.mode = mode
    name = train_model("vae", CONFIG)
    assert wire.lost > 0
    said = capsys.readouterr().err
    assert "`elbolab sync` sends them" in said
    assert find_unfinished(name) is not None
    with pytest.raises(UserError, match=r"\d+ records are not sent"):
        send_unfinished(log_model)
    wire.mode = "pass"
    (line,) = send_unfinished(log_model)
    complete(line.split()[1].rstrip(":"))
    assert send_unfinished(log_model) == []


def test_an_answer_lost_anywhere_duplicates_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Of ever more requests the answer is lost, each of which the server has carried out."""
    # MLflow's own second try would hide the first.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "END_SECONDS", 1)
    wire.mode = "cut"
    train_model("vae", CONFIG)
    wire.mode = "pass"
    tries = 0
    # The run itself, its values, files, images, the model.
    while UNFINISHED.exists():
        tries += 1
        wire.deaf_from = wire.seen + 4 * tries
        with suppress(UserError):
            send_unfinished(log_model)
    assert wire.lost > tries > 10
    wire.deaf_from = math.inf
    (run,) = mlflow_reader.find_runs(params={"model": "vae"}, limit=1)
    complete(run.id)


@pytest.mark.parametrize("path", ["runs/create", "logged-models", "log-batch", ".webp"])
def test_what_mlflow_asks_again_by_itself_is_there_once(wire: Wire, path: str):
    wire.loses = path
    run_id = train_model("vae", CONFIG)
    assert wire.lost == 1
    complete(run_id)


def evaluated_without_server(wire: Wire, run_id: str) -> dict[str, float]:
    """What an evaluation found whose server went away before the first of it was sent, and is there again."""
    attached = tracking.reopen_run

    @contextmanager
    def away(run: str) -> Iterator[tracking.RunWriter]:
        wire.mode = "cut"
        with attached(run) as track:
            yield track

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "END_SECONDS", 1)
        patch.setattr(tracking, "reopen_run", away)
        found = evaluate_run(run_id, EvaluateConfig(samples=5, images=5, budget=1))
    assert wire.lost > 0
    wire.mode = "pass"
    return found


def test_an_evaluation_is_not_lost_with_the_server(wire: Wire):
    run_id = train_model("vae", CONFIG)
    found = evaluated_without_server(wire, run_id)
    assert "test/log_px" not in mlflow_reader.get_run(run_id).metrics
    send_unfinished(log_model)
    run = mlflow_reader.get_run(run_id)
    assert run.metrics["test/log_px"] == pytest.approx(found["test/log_px"])
    assert "evaluation.samples" in run.tags
    assert run.status == "FINISHED"
    complete(run_id)


def test_an_evaluation_that_was_left_is_not_sent_over_a_later_one(wire: Wire):
    run_id = train_model("vae", CONFIG)
    evaluated_without_server(wire, run_id)
    evaluate_run(run_id, EvaluateConfig(samples=7, images=5, budget=1))
    assert send_unfinished(log_model) == []
    assert mlflow_reader.get_run(run_id).tags["evaluation.samples"] == "7"
    rows = artifacts.read(run_id, "evaluation/likelihood.parquet", pd.read_parquet)
    assert rows[rows.posterior == "encoder"].split.value_counts().to_dict() == {"train": 5, "val": 5, "test": 5}


def test_what_is_read_from_a_server_leaves_no_copy(wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    run_id = train_model("vae", CONFIG)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert load_model(run_id).config.epochs == EPOCHS
    assert list(artifacts.step_images(run_id, "samples")) == [1, 5]
    assert not list(folder.iterdir())


def test_a_server_on_postgresql_killed_for_twenty_seconds_and_its_database_restarted(
    store: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Both in the middle of the training, which goes on; afterwards the database holds all of it once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(tracking, "END_SECONDS", 120)
    runs, port = f"{postgres.url}/mlflow", free_port()
    report, servers = tracking.RunWriter.report, ExitStack()
    left: dict[int, int] = {}

    def watched(self: tracking.RunWriter, event: Event) -> None:
        match event.epoch:
            case 2:
                servers.close()
                mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
            case 3:
                wait_for(lambda: "what is logged waits" in capsys.readouterr().err)
                time.sleep(20)
                servers.enter_context(mlflow_server(store, runs, port))
            case 4:
                postgres.stop()
            case 5:
                time.sleep(3)
                postgres.start()
        report(self, event)
        left[event.epoch] = self.writer.left()

    monkeypatch.setattr(tracking.RunWriter, "report", watched)
    with servers:
        servers.enter_context(mlflow_server(store, runs, port))
        run_id = train_model("vae", CONFIG)
        # With the server away, and with its database, everything had to wait.
        assert left[2] > 0
        assert left[4] > 0
        send_unfinished(log_model)
        complete(run_id)


def test_a_store_of_files_that_takes_nothing_holds_up_no_value(store: Path, monkeypatch: pytest.MonkeyPatch):
    """The store's folder is a file; the values arrive, the run ends once its files are there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # The longest time between two tries is 15 seconds.
    monkeypatch.setattr(tracking, "END_SECONDS", 20)
    (store / "kept").write_text("in the way")
    with mlflow_server(store, f"sqlite:///{store}/runs.db", free_port()):
        run_id = train_model("vae", CONFIG)
        client = mlflow.MlflowClient()
        assert len(client.get_metric_history(run_id, "val/elbo")) == EPOCHS
        assert client.get_run(run_id).info.status == "RUNNING"
        os.remove(store / "kept")
        send_unfinished(log_model)
        complete(run_id)


@pytest.mark.parametrize("room", ["for no state", "for hardly a journal"])
def test_without_room_for_its_states_a_training_stops_and_goes_on_later(
    wire: Wire, store: Path, room: str, monkeypatch: pytest.MonkeyPatch
):
    """The system lets the process write no file that is larger: no state, or no journal but its beginning."""
    if room == "for no state":
        most = 1_000_000
    else:
        with monkeypatch.context() as patch:
            patch.setattr(tracking.RunWriter, "log_value", stop)
            with pytest.raises(StoppedError):
                train_model("vae", CONFIG)
        (folder,) = UNFINISHED.glob("*")
        first = (folder / "journal.jsonl").read_bytes().splitlines()[0]
        Journal(folder).close(remove=True)
        # Another command has a name that is a little longer or shorter.
        most = len(first) + 200
    options = [part for key, value in CONFIG.changes().items() for part in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "elbolab", "vae", *options],
        cwd=store,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = UNFINISHED.glob("*")
    if room == "for no state":
        run = mlflow_reader.get_run(Journal(folder).state["run_id"])
        assert run.status == "FAILED"
        assert "cannot be written" in run.tags["failure"]
    complete(resume(folder.name))


def test_a_server_that_refuses_says_so_in_one_line_before_the_training(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracking, "START_SECONDS", 120)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "123456789")
    with pytest.raises(UserError, match=r"refuses the run: .*123456789"):
        train_model("vae", CONFIG)
    assert capsys.readouterr().err == ""
    assert not UNFINISHED.exists()


def test_a_server_that_refuses_to_go_on_with_a_training_costs_nothing_of_it(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The server never heard of the training, which has kept a state."""
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    wire.mode = "cut"
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "END_SECONDS", 1)
        patch.setattr(tracking.RunWriter, "log_metrics", stop)
        with pytest.raises(StoppedError):
            train_model("vae", CONFIG)
    (folder,) = UNFINISHED.glob("*")
    before = sorted(folder.glob("state-*"))
    assert before
    capsys.readouterr()
    wire.mode = "refuse"
    monkeypatch.setattr(tracking, "START_SECONDS", 120)
    with pytest.raises(UserError, match=r"refuses the run: .*403"):
        resume(folder.name)
    assert capsys.readouterr().err == ""
    assert sorted(folder.glob("state-*")) == before
    wire.mode = "pass"
    complete(resume(folder.name))


def test_ctrl_c_before_the_server_answers_ends_the_run(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracking, "START_SECONDS", 120)
    monkeypatch.setattr(tracking, "KILLED_SECONDS", 0.1)
    wire.mode = "hang"

    def interrupt() -> None:
        wait_for(lambda: wire.lost > 0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        train_model("vae", CONFIG)
    (folder,) = UNFINISHED.glob("*")
    assert f"`elbolab resume {folder.name}` resumes it" in capsys.readouterr().err
    wire.mode = "pass"
    send_unfinished(log_model)
    assert mlflow_reader.get_run(read_state(folder)["run_id"]).status == "KILLED"
    complete(resume(folder.name))
