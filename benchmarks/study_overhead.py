"""What a study costs beyond its trainings: `python benchmarks/study_overhead.py`; prints each figure as it is found."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import optuna
import torch

from elbolab.config.schema import StudyConfig
from elbolab.tuning import trial
from elbolab.tuning.command import run_study

TRIVIAL = """
from elbolab import Study
STUDY = Study(
    model="vae", base={"epochs": 1, "train_size": 16, "val_size": 10, "test_size": 10, "device": "cpu"},
    search=["latent_dim", "beta", "lr"], metrics=["val/elbo"], pruner="none",
)
"""
EQUAL = TRIVIAL.replace('"epochs": 1, "train_size": 16', '"epochs": 12, "train_size": 2000').replace(
    'search=["latent_dim", "beta", "lr"]', 'configs=[{"lr": 1e-3}], seeds=range(8)'
)


def carry_out(name: str, **values: Any) -> float:
    started = time.perf_counter()
    run_study(name, StudyConfig.parse(values))
    return time.perf_counter() - started


def define(name: str, text: str) -> str:
    Path("studies").mkdir(exist_ok=True)
    Path("studies", f"{name}.py").write_text(text)
    return name


def overhead(count: int) -> list[float]:
    """Seconds from the end of each of ``count`` trials of a trivial training to that of the next, less its training."""
    training: list[float] = []
    trial.train = _timed(trial.train, training)
    carry_out(define("trivial", TRIVIAL), trials=count)
    done = optuna.load_study(study_name="trivial", storage="sqlite:///optuna.db").get_trials(deepcopy=False)
    ends = [trial.datetime_complete.timestamp() for trial in done if trial.datetime_complete]
    return [end - before - one for (before, end), one in zip(pairwise(ends), training[1:], strict=True)]


def _timed(train: Callable[..., Any], found: list[float]) -> Callable[..., Any]:
    def timed(model: Any, data: Any, report: Callable[..., None], *more: Any) -> None:
        # What the training reports on its way is overhead too, so it is taken out of the training's time.
        outside = [0.0]
        started = time.perf_counter()
        train(model, data, _sum_up(report, outside), *more)
        found.append(time.perf_counter() - started - outside[0])

    return timed


def _sum_up(report: Callable[..., None], total: list[float]) -> Callable[..., None]:
    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        report(*arguments)
        total[0] += time.perf_counter() - started

    return timed


@click.command()
@click.option("--trials", "count", default=1000)
@click.option("--workers/--no-workers", default=True)
def main(count: int, workers: bool) -> None:
    """Overhead a trial over COUNT trials with one worker, then two workers against one on eight equal trials."""
    os.chdir(tempfile.mkdtemp())
    # With one worker this process is it; more of them share its threads, and have one each.
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    seconds = overhead(count)
    few = min(50, count // 4)
    report = {
        "median ms, first 200": 1000 * statistics.median(seconds[:200]),
        f"median ms, first {few}": 1000 * statistics.median(seconds[:few]),
        f"median ms, last {few}": 1000 * statistics.median(seconds[-few:]),
    }
    click.echo(json.dumps({key: round(value, 1) for key, value in report.items()}))
    if workers:
        one, two = (carry_out(define(f"equal{number}", EQUAL), workers=number) for number in (1, 2))
        click.echo(f"eight equal trials: one worker {one:.1f} s, two {two:.1f} s, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
