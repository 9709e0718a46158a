"""Trainings beside each other in one process, as a population, and the same one after another."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import arguments, report
from elbolab_training import prepared

from elbolab.training.backend import Backend
from elbolab.training.compiled_steps import CompiledSteps
from elbolab.training.populations import take_turns
from elbolab.training.trainer import train

SIZE = 4


def main() -> None:
    given = arguments()

    def prepare() -> list[Callable[[Backend], None]]:
        found = []
        for seed in range(SIZE):
            folder = Path(f"{seed}")
            folder.mkdir(exist_ok=True)
            model, data = prepared(given.model, given, seed=seed)
            found.append(partial(train, model, data, lambda _: None, folder))
        return found

    def alone() -> None:
        for each in prepare():
            each(CompiledSteps())

    def beside() -> None:
        for _, outcome in take_turns(prepare()):
            assert outcome is None, outcome

    seconds = []
    # The first compiles what all use.
    for way in (alone, beside, alone, beside):
        began = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - began)
        for state in Path.cwd().glob("*/*.safetensors"):
            state.unlink()
    report(alone_s=seconds[2], beside_s=seconds[3], ratio=seconds[3] / seconds[2])


if __name__ == "__main__":
    main()
