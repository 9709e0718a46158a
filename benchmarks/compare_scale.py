"""`elbolab compare` on a store of many runs: `python benchmarks/compare_scale.py`; seconds and peak memory of it."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import click

STORE, PORT = "sqlite:///mlflow.db", 5986
SMALL = {"epochs": 30, "train_size": 60, "val_size": 20, "test_size": 20}
NEW = {"run_uuid": "other", "start_time": "start_time - 60000 * number", "end_time": "end_time - 60000 * number"}
# Each copy is a run of its own, an earlier one, with a seed that no other has.
COPIES = """
create temp table copy (run_uuid, other, number);
with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < {copies})
insert into copy select run_uuid, lower(hex(randomblob(16))), n from runs, numbers;
insert into runs ({runs}) select {runs_values} from runs r join copy using (run_uuid);
insert into params (run_uuid, key, value)
    select other, key, iif(key = 'seed', number, value) from params join copy using (run_uuid);
insert into tags (run_uuid, key, value) select other, key, value from tags join copy using (run_uuid);
insert into latest_metrics (run_uuid, key, value, timestamp, step, is_nan)
    select other, key, value, timestamp - 60000 * number, step, is_nan from latest_metrics join copy using (run_uuid);
insert into metrics (run_uuid, key, value, timestamp, step, is_nan)
    select other, key, value, timestamp - 60000 * number, step, is_nan from metrics join copy using (run_uuid);
insert into inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)
    select lower(hex(randomblob(16))), source_type, source_id, destination_type, other, step
    from inputs join copy on destination_id = run_uuid;
insert into inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)
    select lower(hex(randomblob(16))), source_type, other, destination_type, destination_id, step
    from inputs join copy on source_id = run_uuid;
"""


def fill(runs: int) -> None:
    """Train and evaluate what `elbolab main` does, but small, and copy it until the store has ``runs`` runs."""
    import mlflow

    from elbolab.config.schema import EvaluateConfig
    from elbolab.experiment.evaluate import evaluate_run
    from elbolab.experiment.suite import SUITE
    from elbolab.experiment.train import train_model
    from elbolab.models import MODELS

    mlflow.set_tracking_uri(STORE)
    for name, changes in [*((name, {}) for name in SUITE), ("latent_opt", {"latent_init": "zeros"})]:
        evaluate_run(train_model(name, MODELS[name].Config.parse(SMALL | changes)), EvaluateConfig(samples=10))
    with closing(sqlite3.connect("mlflow.db")) as store:
        columns = [str(row[1]) for row in store.execute("pragma table_info(runs)")]
        values = [NEW.get(column, column) for column in columns]
        copies = runs // store.execute("select count(*) from runs").fetchone()[0] - 1
        store.executescript(COPIES.format(copies=copies, runs=", ".join(columns), runs_values=", ".join(values)))
        # A server's own store has never been analysed.
        store.execute("drop table sqlite_stat1")
        store.commit()
        counts = [store.execute(f"select count(*) from {table}").fetchone()[0] for table in ("runs", "metrics")]
    size = Path("mlflow.db").stat().st_size >> 20
    click.echo(f"the store: {counts[0]} runs, {counts[1]} values of metrics, {size} MiB")


def measure(what: str, uri: str) -> None:
    """Run `elbolab compare` as a process of its own on the tracking server ``uri``."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "elbolab", "compare"]
    process = subprocess.Popen(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"elbolab compare ended with {os.waitstatus_to_exitcode(status)}")
    computing = usage.ru_utime + usage.ru_stime
    click.echo(f"{what}: {seconds:.1f} s, of which computing {computing:.1f} s; {usage.ru_maxrss / 1024:.0f} MiB")


def serve() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(PORT), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", STORE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    return server


@click.command()
@click.option("--runs", default=10_000)
@click.option("--rounds", default=2)
def main(runs: int, rounds: int) -> None:
    """Compare the newest run of each model among RUNS, read through a server and then from its sqlite file itself."""
    os.chdir(tempfile.mkdtemp())
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # In a process of its own, since the peak memory of a process counts that of the one which started it.
    filling = multiprocessing.get_context("spawn").Process(target=fill, args=(runs,))
    filling.start()
    filling.join()
    server = serve()
    try:
        for _ in range(rounds):
            measure("server", f"http://127.0.0.1:{PORT}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
    for _ in range(rounds):
        measure("sqlite", STORE)


if __name__ == "__main__":
    main()
