"""The standard normal prior."""

import torch
from torch import Tensor

from elbolab.models.posteriors import LOG_2PI, Posterior
from elbolab.models.priors.base import Prior


class StandardNormal(Prior):
    """N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * LOG_2PI)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.noise(shape, generator)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.zero, torch.ones_like(self.zero)

    def kl(self, q: Posterior) -> Tensor | None:
        return q.kl_standard_normal()
