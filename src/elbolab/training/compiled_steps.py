"""Training steps as one compiled graph, where that repays the half minute that a compiler takes."""

import os
import shutil
import sys

import torch
from torch import Tensor, nn

from elbolab.data.splits import Batch, Data
from elbolab.models.base import Model
from elbolab.models.objectives import Terms
from elbolab.support.errors import reason
from elbolab.training import distributed

# On either machine that docs/results.md tells of, for dense nets at batch 20; convolutions are no faster compiled.
REPAID_AFTER = 50_000


def is_worth_compiling(model: Model, data: Data) -> bool:
    """Whether the training of ``model`` has so many whole batches that to compile their steps is quicker in the end."""
    config = model.config
    if config.compile == "no" or not model.compiles or model.device.type != "cpu" or distributed.processes() > 1:
        return False
    steps = config.epochs * (len(data.train) // config.batch_size) * model.steps_per_visit
    return steps > REPAID_AFTER and shutil.which(os.environ.get("CXX", "g++")) is not None


class Compiled(nn.Module):
    """An objective compiled for batches of one size: its values but for rounding, by the same random numbers."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self._call = torch.compile(objective, dynamic=False, options={"fallback_random": True})

    def forward(self, batch: Batch, kl_weight: float | Tensor) -> tuple[Terms, Tensor]:
        # A number would be a constant of the graph, compiled anew whenever it changes.
        return self._call(batch, torch.as_tensor(kl_weight, dtype=batch.x.dtype))


def compiled(objective: nn.Module, model: Model, data: Data) -> nn.Module:
    """``objective`` compiled for whole batches of ``data``; as it is where that fails, said on standard error."""
    fast = Compiled(objective)
    try:
        with torch.random.fork_rng():
            batch = model.observe(data.train.batch(torch.arange(model.config.batch_size)))
            fast(batch, 1.0)[1].backward()
    except Exception as error:
        print(f"elbolab: steps are not compiled: {reason(error)}", file=sys.stderr, flush=True)
        return objective
    finally:
        objective.zero_grad()
    return fast
