"""The backend of one process that compiles steps, where that repays the half minute that a compiler takes."""

import os
import shutil
import sys

import torch
from torch import Tensor, nn

from elbolab.data.batches import Batch, Data
from elbolab.models.base import Model
from elbolab.models.objectives import Terms
from elbolab.support.errors import reason
from elbolab.training.backend import Backend
from elbolab.training.schedule import fewest_epochs

# On either machine that docs/results.md tells of, for dense nets at batch 20; convolutions are no faster compiled.
REPAID_AFTER = 50_000


class CompiledSteps(Backend):
    """One process, which compiles the steps of trainings that are so long that they are done sooner with it."""

    def begin(self, model: Model, data: Data) -> nn.Module:
        objective = super().begin(model, data)
        return _compiled(objective, model, data) if self.compiles(model, data) else objective

    def compiles(self, model: Model, data: Data) -> bool:
        config = model.config
        if config.compile == "no" or not model.compiles or model.device.type != "cpu":
            return False
        steps = fewest_epochs(config) * (len(data.train) // config.batch_size) * model.steps_per_visit
        return steps > REPAID_AFTER and shutil.which(os.environ.get("CXX", "g++")) is not None


class Compiled(nn.Module):
    """An objective compiled for batches of ``size`` images: its values but for rounding, by the same random numbers.

    A batch of any other size, such as an epoch's last, is left to ``objective`` itself, and so are the few epochs of
    another loss with which a training starts.
    """

    def __init__(self, objective: nn.Module, model: Model) -> None:
        super().__init__()
        self.objective = objective
        self.model = model
        self.size = model.config.batch_size
        self._call = torch.compile(objective, dynamic=False, options={"fallback_random": True})

    def forward(self, batch: Batch, kl_weight: float | Tensor) -> tuple[Terms, Tensor]:
        if len(batch) != self.size or self.model.stage:
            return self.objective(batch, kl_weight)
        # A number would be a constant of the graph, compiled anew whenever it changes.
        return self._call(batch, torch.as_tensor(kl_weight, dtype=batch.x.dtype))


def _compiled(objective: nn.Module, model: Model, data: Data) -> nn.Module:
    """``objective`` compiled for whole batches of ``data``; as it is where that fails, said on standard error."""
    fast = Compiled(objective, model)
    try:
        with torch.random.fork_rng():
            batch = model.observe(data.train.batch(torch.arange(fast.size)))
            fast(batch, 1.0)[1].backward()
    except Exception as error:
        print(f"elbolab: steps are not compiled: {reason(error)}", file=sys.stderr, flush=True)
        return objective
    finally:
        objective.zero_grad()
    return fast
