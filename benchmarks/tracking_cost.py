"""Share of a training's wall time that goes into tracking: `python benchmarks/tracking_cost.py`."""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click

from elbolab import experiment, records, tracker
from elbolab.courier import Courier
from elbolab.delivery import Delivery
from elbolab.models import MODELS


class Clock:
    """Seconds spent inside the watched functions, each moment counted once."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._now = now
        self._depth = 0

    def watch(self, owner: Any, name: str) -> None:
        """Count the time in a function of a class or a module."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += self._now() - started

        setattr(owner, name, timed)


@click.command()
@click.option("--model", default="vae")
@click.option("--epochs", type=int)
@click.option("--rounds", default=3)
def main(model: str, epochs: int | None, rounds: int) -> None:
    """Train ROUNDS times: what the training waits for its tracking, and the processor time of what sends meanwhile."""
    os.chdir(tempfile.mkdtemp())
    started = time.perf_counter()
    records.prepare_store()
    click.echo(f"a new store: {time.perf_counter() - started:.2f} s, once; `make` makes it beforehand")
    waiting, sending = Clock(time.perf_counter), Clock(time.thread_time)
    for name, member in list(vars(tracker.Tracker).items()):
        if callable(member) and not name.startswith("_"):
            waiting.watch(tracker.Tracker, name)
    for owner, name in ((Courier, "wait"), (Courier, "stop"), (tracker, "_code")):
        waiting.watch(owner, name)
    sending.watch(Delivery, "send")
    kind = MODELS[model]
    config = kind.Config.parse({} if epochs is None else {"epochs": epochs})
    for number in range(rounds):
        waiting.seconds = sending.seconds = 0.0
        started = time.perf_counter()
        experiment.train_model(model, config)
        wall = time.perf_counter() - started
        share = 100 * waiting.seconds / wall
        line = f"waited for tracking {waiting.seconds:.2f} s = {share:.2f}%, sending took {sending.seconds:.2f} s"
        click.echo(f"round {number + 1}: {wall:.1f} s, {line} of a processor")


if __name__ == "__main__":
    main()
