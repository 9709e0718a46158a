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
def counted(what: str, images: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how many of so many ``images`` are done: what it gives is called with the number of each part.

    ``images`` is None where it is not known how often each of them will be read.
    """
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
                said, seconds = now, now - began
                far = f"{done:,} images read in {seconds:.0f} s"
                if images is not None:
                    far = f"{done:,} of {images:,} images, {seconds / done * (images - done):.0f} s left"
                print(f"{what}: {far}", file=sys.stderr, flush=True)

        yield add
