"""What a person sees while a model trains: a bar on a terminal, a line an epoch elsewhere."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

from elbolab.support import counters
from elbolab.training.trainer import Event


class Progress:
    """Shows each event of one training: epoch, losses and the time left."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name = name
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=epochs, desc=name, unit="epoch", disable=not terminal, position=counters.place)
        self.plain = not terminal
        self.best: tuple[int, str] | None = None
        self.converged: bool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def __call__(self, event: Event) -> None:
        loss = _loss(event.metrics)
        if self.plain:
            most = "at most " if event.is_open else ""
            position = f"epoch {event.epoch} of {most}{event.epochs}" if most else f"epoch {event.epoch}/{event.epochs}"
            left = f"{most}{event.seconds_left:.0f} s left"
            print(f"{self.name}: {position}, {loss}, {left}", file=sys.stderr, flush=True)
        if event.best:
            self.best = event.epoch, loss
        self.converged = event.converged
        # The end of a training that has stopped improving comes nearer.
        self.bar.total = event.epochs
        self.bar.set_description_str(f"{self.name}, at most" if event.is_open else self.name, refresh=False)
        self.bar.set_postfix_str(loss, refresh=False)
        # A resumed training has some epochs behind it.
        self.bar.update(event.epoch - self.bar.n)

    def say_outcome(self, best: int, last: int) -> None:
        """Print what a training reached: its last epoch, the best, which is the model, and whether it converged."""
        # A resumed training may have had it before.
        loss = f" ({self.best[1]})" if self.best and self.best[0] == best else ""
        epochs = f"epoch {best} of {last}{loss} is the model" if last > 1 else f"done{loss}"
        state = {True: "; converged", False: "; its score may improve further", None: ""}
        print(f"{self.name}: {epochs}{state[self.converged]}", file=sys.stderr, flush=True)


def _loss(metrics: dict[str, float]) -> str:
    """The loss of an epoch in words; of a latent-variable model at beta = 1, whatever weight the KL term has by now."""
    name, key, sign = ("-ELBO", "elbo", -1) if "val/elbo" in metrics else ("loss", "loss", 1)
    return f"{name} {sign * metrics[f'train/{key}']:.4g}, validation {sign * metrics[f'val/{key}']:.4g}"
