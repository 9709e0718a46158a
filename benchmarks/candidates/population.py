"""Trainings beside each other in one process, as a population, and the same one after another."""

import time
from collections.abc import Generator
from pathlib import Path

from common import arguments, report
from elbolab_training import prepared

from elbolab.support.signals import postponed
from elbolab.training.populations import together
from elbolab.training.trainer import Step, training

SIZE = 4


def main() -> None:
    given = arguments()
    with postponed() as interruption:

        def prepare() -> list[Generator[Step, None, None]]:
            found = []
            for seed in range(SIZE):
                folder = Path(f"{seed}")
                folder.mkdir(exist_ok=True)
                model, data = prepared(given.model, given, seed=seed)
                found.append(training(model, data, lambda _: None, folder, interruption))
            return found

        def alone() -> None:
            for each in prepare():
                for step in each:
                    step.take()

        def beside() -> None:
            for _, outcome in together(prepare()):
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
