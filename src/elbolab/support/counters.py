"""How far a long computation is: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Evaluations of seconds show nothing, longer ones a line so often.
FIRST_SECONDS, SECONDS_A_LINE = 5, 10

place = 0
"""The line of this process's bar on the terminal, from 0; several processes have one each."""
_about = ""


@contextmanager
def computing_for(name: str) -> Iterator[None]:
    """While it lasts, what is shown begins with ``name``."""
    global _about
    _about = f"{name}: "
    try:
        yield
    finally:
        _about = ""


@contextmanager
def counted(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """Show how many of so many ``images`` are done: what it gives is called with the number of each part."""
    began = said = time.monotonic()
    terminal, what = sys.stderr.isatty(), f"{_about}{what}"
    with tqdm(
        total=images, desc=what, unit="image", leave=False, delay=FIRST_SECONDS, disable=not terminal, position=place
    ) as bar:
        done = 0

        def add(count: int) -> None:
            nonlocal done, said
            done += count
            bar.update(count)
            if not terminal and (now := time.monotonic()) - said > SECONDS_A_LINE:
                left, said = (now - began) / done * (images - done), now
                print(f"{what}: {done:,} of {images:,} images, {left:.0f} s left", file=sys.stderr, flush=True)

        yield add
