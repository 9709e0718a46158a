"""Share of a default training's wall time that goes into its tracking: what the training waits for it."""

import functools
import time
from collections.abc import Callable
from typing import Any

from common import arguments, report

from elbolab.experiment import train
from elbolab.models import MODELS
from elbolab.support.malloc import tune_memory
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.mlflow_writer import MlflowWriter
from elbolab.tracking.uploader import Uploader


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
        def timed(*arguments: Any, **more: Any) -> Any:
            self._depth += 1
            started = self._now()
            try:
                return function(*arguments, **more)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += self._now() - started

        setattr(owner, name, timed)


def main() -> None:
    given = arguments()
    # As the command does.
    tune_memory()
    mlflow_reader.prepare_store()
    waiting, sending = Clock(time.perf_counter), Clock(time.thread_time)
    for name, member in list(vars(tracking.RunWriter).items()):
        if callable(member) and not name.startswith("_"):
            waiting.watch(tracking.RunWriter, name)
    for owner, name in ((Uploader, "wait"), (Uploader, "stop"), (tracking, "code_tags")):
        waiting.watch(owner, name)
    sending.watch(MlflowWriter, "send")
    config = MODELS["vae"].Config.parse({"epochs": given.epochs, "seed": given.seed})
    began = time.perf_counter()
    train.train_model("vae", config)
    wall = time.perf_counter() - began
    report(share=waiting.seconds / wall, wall_s=wall, waiting_s=waiting.seconds, sending_s=sending.seconds)


if __name__ == "__main__":
    main()
