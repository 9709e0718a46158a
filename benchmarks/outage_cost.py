"""What it costs a training that its tracking server is away for twenty seconds: `python benchmarks/outage_cost.py`."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import click
import mlflow
from soak import ADDRESS, serve

from elbolab.experiment import train_model
from elbolab.models import MODELS

AWAY_SECONDS, BEFORE_SECONDS = 20, 5


def end(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(timeout=30)


def training(epochs: int) -> tuple[float, str]:
    started = time.perf_counter()
    run = train_model("vae", MODELS["vae"].Config.parse({"epochs": epochs}))
    return time.perf_counter() - started, run


def check(run: str, epochs: int) -> None:
    """The server must hold each epoch once."""
    found = mlflow.MlflowClient().get_metric_history(run, "val/elbo")
    if [metric.step for metric in found] != list(range(1, epochs + 1)):
        sys.exit(f"run {run} has the steps {[metric.step for metric in found]}")


@click.command()
@click.option("--epochs", default=20)
@click.option("--rounds", default=5)
def main(epochs: int, rounds: int) -> None:
    """Train ROUNDS times with the server there, and as often with the server killed and started again, in turns."""
    os.chdir(tempfile.mkdtemp())
    mlflow.set_tracking_uri(ADDRESS)
    server = serve()
    times: dict[str, list[float]] = {"there": [], "away": []}

    def outage() -> None:
        nonlocal server
        time.sleep(BEFORE_SECONDS)
        end(server)
        time.sleep(AWAY_SECONDS)
        server = serve()

    try:
        training(1)
        for _ in range(rounds):
            seconds, run = training(epochs)
            check(run, epochs)
            times["there"].append(seconds)

            thread = threading.Thread(target=outage)
            thread.start()
            seconds, run = training(epochs)
            thread.join()
            check(run, epochs)
            times["away"].append(seconds)
            click.echo(f"there {times['there'][-1]:.1f} s, away for {AWAY_SECONDS} s {seconds:.1f} s")
    finally:
        end(server)
    there, away = (statistics.median(seconds) for seconds in times.values())
    click.echo(f"medians {there:.1f} s and {away:.1f} s: {100 * (away / there - 1):+.1f}%")


if __name__ == "__main__":
    main()
