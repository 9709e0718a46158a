"""Whether hours of work leave anything behind: `python benchmarks/soak.py`; prints the growth of each process."""

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click

SMALL = {"epochs": 3, "train_size": 200, "val_size": 20, "test_size": 20, "latent_dim": 8}
STUDY = """
from elbolab import Study
STUDY = Study(
    model="vae", base={"epochs": 2, "train_size": 200, "val_size": 20, "test_size": 20, "device": "cpu"},
    search=["latent_dim", "lr"], metrics=["val/elbo"], pruner="none",
)
"""
# How much bigger a process may be at the end than once it has done everything once, as a share, and how many files more
# it may have open, the one that it is about to close.
BOUND, MORE_FILES = 0.03, 1
SECONDS_A_SAMPLE = 1.0
FILES = "open files"


def free_port() -> int:
    """A port that nobody listens to, below those that connections get by themselves."""
    while True:
        port = random.randint(10_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def serve(port: int) -> subprocess.Popen[bytes]:
    """A server of the working folder's runs that answers at this port."""
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "kept"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    return server


def train(until: float) -> None:
    """Train, evaluate and compare again and again in this one process."""
    from elbolab.config.schema import CompareConfig, EvaluateConfig
    from elbolab.experiment.evaluate import evaluate_run
    from elbolab.experiment.train import train_model
    from elbolab.models import MODELS
    from elbolab.report.compare import compare

    seed = 0
    while time.time() < until:
        for name in ("vae", "ppca"):
            run = train_model(
                name, MODELS[name].Config.parse({**SMALL, "epochs": 3 if name == "vae" else 1, "seed": seed})
            )
            evaluate_run(run, EvaluateConfig(samples=5, images=20))
        compare(CompareConfig(out=Path("report")))
        seed += 1


def search(until: float) -> None:
    """Work on the trials of one study in this process, which is one of its workers, ten at a time."""
    from elbolab.config.schema import StudyConfig
    from elbolab.support import sqlite
    from elbolab.tuning.command import load_study, run_study
    from elbolab.tuning.mlflow_mirror import RUN_OF_STUDY
    from elbolab.tuning.optuna_storage import Job, open_study
    from elbolab.tuning.study import Study
    from elbolab.tuning.trial import work

    run_study("soak", StudyConfig.parse({"trials": 1}))
    name, definition = load_study("soak")
    assert isinstance(definition, Study)
    job = Job(name, definition, sqlite.absolute("sqlite:///optuna.db"), sys.maxsize, 0, 10)
    parent = open_study(job)[0].user_attrs[RUN_OF_STUDY]
    while time.time() < until:
        work(job, parent, limit=10)


class Meter(threading.Thread):
    """The resident memory in KiB and the open files of processes, sampled until they end."""

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.found: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._processes = processes

    def run(self) -> None:
        while True:
            for name, pid in self._processes.items():
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                except (OSError, IndexError, ValueError):
                    continue
                if pages:
                    self.found[name, "memory, MiB"].append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
                    self.found[name, FILES].append(files)
            time.sleep(SECONDS_A_SAMPLE)


def growth(samples: list[float]) -> tuple[float, float]:
    """The median of the second quarter of samples, the first being the start, and that of the last."""
    quarter = len(samples) // 4
    return statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])


def left_behind() -> list[str]:
    """What should not be there at the end: runs that are not closed, and what was not sent."""
    import mlflow

    client = mlflow.MlflowClient()
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(["0"], max_results=1000, page_token=token)
        runs += page
        if not (token := page.token):
            break
    click.echo(f"runs: {len(runs)}")
    found = [f"run {run.info.run_id} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    return found + [f"{path} was not sent" for path in Path("unfinished").glob("*")]


@click.command()
@click.option("--minutes", default=20.0)
def main(minutes: float) -> None:
    """Train and compare in one process and search in two others for MINUTES, all on one MLflow server."""
    os.chdir(tempfile.mkdtemp())
    address = f"http://127.0.0.1:{(port := free_port())}"
    os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": address, "MLFLOW_LOGGING_LEVEL": "WARNING"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    Path("studies").mkdir()
    Path("studies", "soak.py").write_text(STUDY)
    server = serve(port)
    try:
        context, until = get_context("spawn"), time.time() + 60 * minutes
        crew: dict[str, BaseProcess] = {
            "training": context.Process(target=train, args=(until,)),
            "worker 1": context.Process(target=search, args=(until,)),
            "worker 2": context.Process(target=search, args=(until,)),
        }
        for process in crew.values():
            process.start()
        meter = Meter({name: process.pid for name, process in crew.items() if process.pid})
        meter.start()
        for process in crew.values():
            process.join()
        broken = [f"{name} ended with {process.exitcode}" for name, process in crew.items() if process.exitcode]
        for (name, what), samples in meter.found.items():
            before, after = growth(samples)
            click.echo(f"{name}: {what}, {before:.0f} to {after:.0f}, {100 * (after / before - 1):+.1f}%")
            if after - before > (MORE_FILES if what == FILES else BOUND * before):
                broken.append(f"{what} of {name} grew from {before:.0f} to {after:.0f}")
        broken += left_behind()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
    for line in broken:
        click.echo(line, err=True)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
