"""elbolab's training of latent_opt, and its steps beside those of the decoder alone on given latent vectors."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from common import LR, arguments
from elbolab_training import measure, prepared

from elbolab import trainer
from elbolab.data import Data
from elbolab.models.latent import LatentModel
from elbolab.models.latent_opt import LatentOpt


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
        (-model.likelihood.log_prob(x, model.likelihood.params(model.compute(decoder, z)))).mean().backward()
        adam.step()
        adam.zero_grad()

    return step


def main() -> None:
    given = arguments()
    model, data = prepared("latent_opt", given)
    assert isinstance(model, LatentOpt)
    whole: list[float] = []
    bare: list[float] = []
    trainer.Step.take = timed(trainer.Step.take, whole)
    step = timed(decoder_step(model, deepcopy(model.decoder), data), bare)

    def between() -> dict[str, float]:
        warm = len(bare)
        model.train()
        for _ in range(len(whole) - warm):
            step()
        of_epoch = [1000 * statistics.median(found[warm:]) for found in (whole, bare)]
        return {"step_ms": of_epoch[0], "decoder_ms": of_epoch[1], "ratio": of_epoch[0] / of_epoch[1]}

    measure(given, model, data, between)


if __name__ == "__main__":
    main()
