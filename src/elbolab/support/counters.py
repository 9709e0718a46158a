"""How far a long computation is: a bar on a terminal, a line a minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Evaluations of seconds show nothing, longer ones a line so often.
FIRST_SECONDS, SECONDS_A_LINE = 5, 10


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
