"""A semi-amortized VAE: an encoder proposes each image's posterior, and gradient steps on its ELBO refine it."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from elbolab.config.ranges import FloatRange, IntRange
from elbolab.data.batches import Batch
from elbolab.models.neural import EncoderConfig, EncoderModel
from elbolab.models.posteriors import Posterior


class SemiAmortizedConfig(EncoderConfig):
    """How the encoder's posterior of an image is refined, in training as in evaluation."""

    refine_steps: Annotated[int, Field(gt=0), IntRange(1, 20)] = 5
    """Gradient steps on the parameters of each image's posterior, each on the ELBO at one sample."""
    refine_lr: Annotated[float, Field(gt=0), FloatRange(1e-4, 0.1, log=True)] = 0.03
    """Rate of these steps."""
    refine_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the step before that each of them keeps."""


class SemiAmortized(EncoderModel):
    """q(z | x) is an encoder's, refined by stochastic gradient ascent on the ELBO (Kim et al. 2018, algorithm 1).

    The loss is -ELBO at the refined q, differentiated through the steps of the refinement: encoder and decoder both
    learn what is good after it.
    """

    Config = SemiAmortizedConfig

    @property
    def inference(self) -> str:
        steps, rate, momentum = self.config.refine_steps, self.config.refine_lr, self.config.refine_momentum
        return f"refined: encoder, then {steps} gradient steps at rate {rate:g}, momentum {momentum:g}, decoder frozen"

    @property
    def steps_to_infer(self) -> int:
        return self.config.refine_steps

    @property
    def stacks(self) -> bool:
        return False  # a step takes a gradient of its own

    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        rows = self.compute(self.encoder, batch.x)
        step = torch.zeros_like(rows)
        for _ in range(self.config.refine_steps):
            step = self.config.refine_momentum * step + self._gradient(batch.x, rows, generator)
            rows = rows + self.config.refine_lr * step
        return self.family.from_rows(rows)

    def _gradient(self, x: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """The gradient of each image's ELBO by its own row (B, W), itself differentiable where gradients are kept."""
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            at = rows if rows.requires_grad else rows.detach().requires_grad_()
            bound = self.bound(x, self.family.from_rows(at), 1, generator).sum()
            return torch.autograd.grad(bound, at, create_graph=through)[0]
