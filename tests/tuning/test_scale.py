"""Studies past one process: PostgreSQL and an MLflow server under several workers, and Ray; each a real one."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import mlflow
import optuna
import pytest
from conftest import Command, Postgres, free_port, mlflow_server, wait_for
from helpers_studies import SEARCH, all_under_way, begin, carry_out, children, define, needed, trials_of
from mlflow.entities import Run
from optuna.trial import TrialState

from elbolab.tracking.keys import TRIAL
from elbolab.tuning.optuna_storage import DIED

pytestmark = pytest.mark.scale


@pytest.fixture
def server(postgres: Postgres, store: Path) -> Iterator[str]:
    with mlflow_server(store, f"{postgres.url}/mlflow", free_port()) as address:
        yield address


def test_three_workers_on_postgresql_and_a_server_one_killed(store: Path, postgres: Postgres, server: str):
    storage = f"{postgres.url}/optuna"
    define(
        store, "shared", SEARCH.replace('"epochs": 2', '"epochs": 60').replace("trials=4", "trials=6, pruner='none'")
    )
    there = {"MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "shared"}
    workers = [begin(store, "shared", "--storage", storage, **there) for _ in range(3)]
    wait_for(lambda: all_under_way(3, "shared", storage), seconds=240)
    workers[0].send_signal(signal.SIGKILL)
    ends = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0, 0], ends

    trials = needed("shared", storage)
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 6, TrialState.FAIL: 1}
    (lost,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    (retry,) = [trial for trial in trials if trial.system_attrs.get("retry_history") == [lost.number]]
    assert retry.params == lost.params
    assert len({str(trial.params) for trial in trials}) == 6
    runs = _runs_of(server, "shared")
    assert Counter(run.data.tags["elbolab.kind"] for run in runs) == {"study": 1, "trial": 7}
    assert Counter(run.info.status for run in runs) == {"FINISHED": 7, "FAILED": 1}
    (failed,) = [run for run in runs if run.info.status == "FAILED"]
    assert (failed.data.tags[TRIAL], failed.data.tags["failure"]) == (str(lost.number), DIED)


def test_a_study_outlives_its_tracking_server(store: Path, command: Command):
    define(store, "outage", SEARCH.replace("trials=4", "trials=5, pruner='none'"))
    runs, port = f"sqlite:///{store}/server.db", free_port()
    there = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_EXPERIMENT_NAME": "outage",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }
    with mlflow_server(store, runs, port):
        process = begin(store, "outage", **there)
        wait_for(lambda: sum(trial.state == TrialState.COMPLETE for trial in _trials("outage")) >= 1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "brings MLflow up to date" in errors
    assert "`elbolab sync` sends them" in errors.splitlines()[-1]
    assert [trial.state for trial in _trials("outage")] == [TrialState.COMPLETE] * 5
    with mlflow_server(store, runs, port) as address:
        first, second = [begin(store, "outage", "--sync", **there).communicate(timeout=120)[0] for _ in range(2)]
        assert command("sync", **there).returncode == 0
        found = _runs_of(address, "outage")
    assert int(first.split()[0]) >= 3
    assert second.startswith("0 trials")
    assert Counter(run.data.tags["elbolab.kind"] for run in found) == {"study": 1, "trial": 5}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert not (store / "unfinished").exists()


def test_ray_spreads_trials_and_a_node_that_dies_costs_a_retry(store: Path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'elbolab[ray]'")
    from ray.cluster_utils import Cluster

    text = SEARCH.replace('"epochs": 2', '"epochs": 60').replace("trials=4", "trials=4, pruner='none'")
    define(store, "spread", text)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        process = begin(store, "spread", "--executor", "ray", "--address", str(cluster.address), "--heartbeat", "3")
        # Each node has room for one.
        wait_for(lambda: all_under_way(2, "spread"))
        cluster.remove_node(second, allow_graceful=False)
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    states = Counter(trial.state for trial in needed("spread"))
    assert states == {TrialState.COMPLETE: 4, TrialState.FAIL: 1}
    runs = children(out.split()[-1])
    assert Counter(run.info.status for run in runs.values()) == {"FINISHED": 4, "FAILED": 1}
    # The storage is the driver's file whatever folder a node works in.
    assert carry_out("spread", trials=4, heartbeat=3) == out.split()[-1]


def test_a_study_on_ray_in_which_everything_fails_ends_and_no_log_has_a_password(store: Path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'elbolab[ray]'")
    define(store, "hopeless", SEARCH.replace('"epochs": 2', '"epochs": 2, "sigma": 1e-30'))
    password = f"planted{uuid4().hex}"
    process = begin(store, "hopeless", "--executor", "ray", "--trials", "50", MLFLOW_TRACKING_PASSWORD=password)
    said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "the last 10 trials failed" in said[1]
    assert 10 <= len(trials_of("hopeless")) < 30
    logs = [file.read_bytes() for file in Path("/tmp/ray/session_latest/logs").rglob("*") if file.is_file()]
    assert any(b"OMP_NUM_THREADS" in log for log in logs), "Ray logs what it is given for its tasks"
    assert not [text for text in (*logs, *map(str.encode, said)) if password.encode() in text]


def _runs_of(address: str, experiment: str) -> list[Run]:
    client = mlflow.MlflowClient(address)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id])


def _trials(name: str) -> list[optuna.trial.FrozenTrial]:
    try:
        return trials_of(name)
    except (KeyError, optuna.exceptions.OptunaError):
        return []
