"""What a person sees while a model trains: a bar on a terminal, a line an epoch elsewhere."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

from elbolab.training.trainer import Event


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
        # A resumed training has some epochs behind it.
        self.bar.update(event.epoch - self.bar.n)
