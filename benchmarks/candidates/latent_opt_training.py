"""elbolab's training of latent_opt, and its steps in turn with those of the decoder alone on given latent vectors."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import islice

import torch
from common import LR, arguments
from elbolab_training import measure, prepared

from elbolab.data.splits import Data
from elbolab.models.latent import LatentModel
from elbolab.models.latent_opt import LatentOpt
from elbolab.training.backend import Objective, Step

# After every epoch, each beside one of the decoder alone: machines change within seconds.
STEPS = 120


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

    def between() -> dict[str, float]:
        # The training itself goes on as if nothing had been.
        own = deepcopy(model).train()
        objective, bare = Objective(own), decoder_step(own, deepcopy(own.decoder), data)
        seconds: dict[str, list[float]] = {"step": [], "decoder": []}
        for batch in islice(data.train.batches(given.batch_size), STEPS):
            whole = Step(objective, own.optimizers(), own.observe(batch), 1.0, "a step", own.config.clip).take
            for name, step in (("step", whole), ("decoder", bare)):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
        step_ms, decoder_ms = (1000 * statistics.median(found) for found in seconds.values())
        return {"step_ms": step_ms, "decoder_ms": decoder_ms, "ratio": step_ms / decoder_ms}

    measure(given, model, data, between)


if __name__ == "__main__":
    main()
