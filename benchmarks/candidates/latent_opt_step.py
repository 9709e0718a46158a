"""latent_opt's step on rows and decoder inside its training, beside the decoder's own step on given latent vectors."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import LR, arguments, report
from elbolab_training import prepared

from elbolab import trainer
from elbolab.data import Data
from elbolab.models import LatentModel
from elbolab.models.latent_opt import LatentOpt
from elbolab.trainer import Event


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """``function``, with the seconds of every call noted."""

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - began)
        return result

    return call


def decoder_step(model: LatentModel, decoder: torch.nn.Module, data: Data) -> Callable[[], None]:
    """Forward, backward and Adam of a decoder of its own, always on the same batch of given latent vectors."""
    x = data.train.batch(torch.arange(model.config.batch_size)).x
    z = torch.randn(len(x), model.config.latent_dim)
    adam = torch.optim.Adam(decoder.parameters(), LR, fused=True)

    def step() -> None:
        (-model.likelihood.log_prob(x, model.likelihood.params(decoder(z)))).mean().backward()
        adam.step()
        adam.zero_grad()

    return step


def main() -> None:
    given = arguments()
    model, data = prepared("latent_opt", given)
    assert isinstance(model, LatentOpt)
    whole: list[float] = []
    bare: list[float] = []
    trainer._step = timed(trainer._step, whole)
    step = timed(decoder_step(model, deepcopy(model.decoder), data), bare)

    def between(event: Event) -> None:
        for _ in range(len(whole) // event.epoch):
            step()

    trainer.train(model, data, between, Path.cwd())
    warm = len(whole) // given.epochs
    milliseconds = [1000 * statistics.median(found[warm:]) for found in (whole, bare)]
    report(step_ms=milliseconds[0], decoder_ms=milliseconds[1], ratio=milliseconds[0] / milliseconds[1])


if __name__ == "__main__":
    main()
