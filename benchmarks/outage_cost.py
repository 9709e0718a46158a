"""What it costs a training that its tracking server is away for twenty seconds: `python benchmarks/outage_cost.py`."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import mlflow
from soak import free_port, serve

from elbolab.cli import ENVIRONMENT
from elbolab.experiment.train import train_model
from elbolab.models import MODELS

AWAY_SECONDS, BEFORE_SECONDS = 20, 5
Server = subprocess.Popen[bytes]


def end(server: Server) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(timeout=30)


def killed(server: Server, port: int) -> Server:
    """Kill the server, and start it again."""
    end(server)
    time.sleep(AWAY_SECONDS)
    return serve(port)


def hanging(server: Server, port: int) -> Server:
    """Have the server take connections and answer nothing."""
    os.killpg(server.pid, signal.SIGSTOP)
    time.sleep(AWAY_SECONDS)
    os.killpg(server.pid, signal.SIGCONT)
    return server


class Failing(BaseHTTPRequestHandler):
    """Answers 500."""

    def answer(self) -> None:
        self.send_error(500)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - the names of http.server

    def log_message(self, format: str, *args: object) -> None:
        pass


def failing(server: Server, port: int) -> Server:
    """Have another in the server's place answer 500."""
    end(server)
    with ThreadingHTTPServer(("127.0.0.1", port), Failing) as other:
        threading.Thread(target=other.serve_forever).start()
        time.sleep(AWAY_SECONDS)
        other.shutdown()
    return serve(port)


OUTAGES: dict[str, Callable[[Server, int], Server]] = {"killed": killed, "hanging": hanging, "failing": failing}


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
    """Train ROUNDS times with the server there, and as often with each kind of outage in the middle, in turns."""
    os.chdir(tempfile.mkdtemp())
    # As the command has it.
    os.environ |= ENVIRONMENT
    port = free_port()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    server = serve(port)
    times: dict[str, list[float]] = {name: [] for name in ("there", *OUTAGES)}

    def outage(name: str) -> None:
        nonlocal server
        time.sleep(BEFORE_SECONDS)
        server = OUTAGES[name](server, port)

    try:
        training(1)
        for _ in range(rounds):
            for name, found in times.items():
                trouble = threading.Thread(target=outage, args=(name,)) if name in OUTAGES else None
                if trouble is not None:
                    trouble.start()
                seconds, run = training(epochs)
                if trouble is not None:
                    trouble.join()
                check(run, epochs)
                found.append(seconds)
                click.echo(f"{name} {seconds:.1f} s")
    finally:
        end(server)
    there = statistics.median(times["there"])
    for name in OUTAGES:
        away = statistics.median(times[name])
        click.echo(f"medians: there {there:.1f} s, {name} {away:.1f} s: {100 * (away / there - 1):+.1f}%")


if __name__ == "__main__":
    main()
