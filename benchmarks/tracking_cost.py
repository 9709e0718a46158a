"""Share of a training's wall time that goes into tracking: `python benchmarks/tracking_cost.py`."""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click

from elbolab import experiment, records, tracker
from elbolab.models import MODELS


class Clock:
    """Wall time spent inside the watched functions, each moment counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - started

        return timed


@click.command()
@click.option("--model", default="vae")
@click.option("--epochs", type=int)
@click.option("--rounds", default=3)
def main(model: str, epochs: int | None, rounds: int) -> None:
    """Train ROUNDS times; the first round also pays for what a process does once."""
    clock = Clock()
    os.chdir(tempfile.mkdtemp())
    started = time.perf_counter()
    records.prepare_store()
    click.echo(f"a new store: {time.perf_counter() - started:.2f} s, once; `make` makes it beforehand")
    for name, member in list(vars(tracker.Tracker).items()):
        if callable(member) and not name.startswith("_"):
            setattr(tracker.Tracker, name, clock.watch(member))
    experiment.log_model = clock.watch(experiment.log_model)
    tracker.prepare_store = clock.watch(tracker.prepare_store)
    kind = MODELS[model]
    config = kind.Config.parse({} if epochs is None else {"epochs": epochs})
    for number in range(rounds):
        clock.seconds, started = 0.0, time.perf_counter()
        experiment.train_model(model, config)
        wall = time.perf_counter() - started
        share = 100 * clock.seconds / wall
        click.echo(f"round {number + 1}: {wall:.1f} s, of which tracking {clock.seconds:.2f} s = {share:.2f}%")


if __name__ == "__main__":
    main()
