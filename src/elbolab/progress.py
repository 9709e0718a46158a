"""What a person sees while something works: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tqdm import tqdm

from elbolab.trainer import Event

# Evaluations of seconds show nothing, longer ones a line so often.
FIRST_SECONDS, SECONDS_A_LINE = 5, 60


class Progress:
    """Shows each event of one training: epoch, losses and the time left."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name = name
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=epochs, desc=name, unit="epoch", disable=not terminal)
        self.plain = not terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def __call__(self, event: Event) -> None:
        loss = f"loss {event.metrics['train/loss']:.4g}, validation {event.metrics['val/loss']:.4g}"
        if self.plain:
            position = f"epoch {event.epoch}/{event.epochs}"
            print(f"{self.name}: {position}, {loss}, {event.seconds_left:.0f} s left", file=sys.stderr, flush=True)
        self.bar.set_postfix_str(loss, refresh=False)
        # A training that is gone on with has epochs behind it.
        self.bar.update(event.epoch - self.bar.n)


@contextmanager
def counted(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """Show how many of so many ``images`` are done: what it gives is called with the number of each part."""
    began = said = time.monotonic()
    terminal = sys.stderr.isatty()
    with tqdm(total=images, desc=what, unit="image", leave=False, delay=FIRST_SECONDS, disable=not terminal) as bar:
        done = 0

        def add(count: int) -> None:
            nonlocal done, said
            done += count
            bar.update(count)
            if not terminal and (now := time.monotonic()) - said > SECONDS_A_LINE:
                left, said = (now - began) / done * (images - done), now
                print(f"{what}: {done:,} of {images:,} images, {left:.0f} s left", file=sys.stderr, flush=True)

        yield add
