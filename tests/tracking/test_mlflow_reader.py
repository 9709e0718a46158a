"""Runs and histories asked for in bulk are those that are asked for one by one: a real store, a real server."""

import math
import os
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from conftest import free_port, mlflow_server
from mlflow.entities import Metric, Param

from elbolab.tracking import mlflow_reader

RUNS = 7


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with a sqlite store of a few runs, and the runs' ids, the oldest first."""
    folder = tmp_path_factory.mktemp("bulk")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    ids = []
    for number in range(RUNS):
        tags = {"elbolab.kind": "train", "data.digest": f"d{number % 2}", "data.name": "npz:it's mine"}
        run = client.create_run("0", 1_700_000_000_000 + number, tags).info.run_id
        # One epoch is logged late, one twice, and one value is no number.
        values = [
            Metric(key, math.nan if epoch == 4 else -epoch / (number + 3), 1000 + moment, epoch)
            for key in ["train/loss", "val/loss", "val/elbo"][: 2 + (number != 3)]
            for moment, epoch in enumerate([2, 1, 3, 4, 5, 5, 6][: number + 1])
        ]
        evaluation = [Metric(key, -50.0, 2000, 0) for key in ("val/log_px", "test/log_px")]
        client.log_batch(run, values + evaluation, [Param("model", "cnn" if number < 3 else "vae")])
        client.set_terminated(run, "FAILED" if number == 6 else "FINISHED")
        ids.append(run)
    return folder, ids


@contextmanager
def without_bulk(address: str) -> Iterator[str]:
    """The server at ``address`` behind one that knows only its public calls."""

    class Forward(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path.startswith("/ajax-api"):
                self.send_error(404)
                return
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length) if length else None
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(address + self.path, body, headers, method=self.command)
            with urllib.request.urlopen(asked) as answer:
                self.send_response(answer.status)
                self.end_headers()
                self.wfile.write(answer.read())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


@pytest.fixture(scope="module")
def ways(filled: tuple[Path, list[str]]) -> Iterator[dict[str, str]]:
    """The addresses of the store: its file, a server on it, and a server that does not know the bulk call."""
    local = f"sqlite:///{filled[0]}/mlflow.db"
    with mlflow_server(filled[0], local, free_port()) as address, without_bulk(address) as older:
        yield {"file": local, "server": address, "older server": older}


@pytest.fixture(params=["file", "server", "older server"])
def ids(
    request: pytest.FixtureRequest,
    filled: tuple[Path, list[str]],
    ways: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[str]]:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(ways[request.param])
    yield filled[1]
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def expected(filled: tuple[Path, list[str]]) -> pd.DataFrame:
    """What `mlflow_reader.history` is to give of the runs, by MLflow's public calls."""
    client = mlflow.MlflowClient(f"sqlite:///{filled[0]}/mlflow.db")
    rows = [
        (run, key, item.step, item.value)
        for run in filled[1]
        for key in client.get_run(run).data.metrics
        if not key.endswith("log_px")
        for item in client.get_metric_history(run, key)
    ]
    assert len(rows) == 80
    return by_run_and_key(pd.DataFrame(rows, columns=["run", "key", "step", "value"]))


def by_run_and_key(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["run", "key"], kind="stable", ignore_index=True)


@pytest.mark.parametrize(("runs", "values"), [(100, 25_000), (3, 25_000), (100, 10)])
def test_histories_in_bulk_are_those_one_by_one(
    ids: list[str], expected: pd.DataFrame, runs: int, values: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mlflow_reader, "RUNS_A_CALL", runs)
    monkeypatch.setattr(mlflow_reader, "VALUES_A_CALL", values)
    pd.testing.assert_frame_equal(by_run_and_key(mlflow_reader.history(ids)), expected)


def test_the_server_chooses_runs_as_python_would(ids: list[str]):
    everything = mlflow_reader.find_runs()
    assert [run.id for run in everything] == ids[5::-1]
    for model, digest, limit in (("vae", "d1", 1), ("vae", "d1", None), ("cnn", "d0", 2), ("ppca", "d0", None)):
        chosen = [run.id for run in everything if (run.params["model"], run.tags["data.digest"]) == (model, digest)]
        tags = {"data.digest": digest, "data.name": "npz:it's mine"}
        found = mlflow_reader.find_runs("train", {"model": model}, tags, limit)
        assert [run.id for run in found] == chosen[:limit]
    assert mlflow_reader.find_runs("study") == []


def test_a_history_is_looked_for_in_its_own_run(filled: tuple[Path, list[str]], store: Path):
    mlflow.set_tracking_uri(f"sqlite:///{filled[0]}/mlflow.db")
    mlflow_reader.prepare_store()
    asked = "select * from metrics where run_uuid = '' and key = '' order by timestamp, step, value"
    with closing(sqlite3.connect(filled[0] / "mlflow.db")) as database:
        plan = str(database.execute(f"explain query plan {asked}").fetchall())
    assert "run_uuid=?" in plan
