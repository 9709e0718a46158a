"""The prior of a model of two layers, p(z1 | z2) p(z2), which is trained with the decoder."""

from typing import Any

import torch
from torch import Tensor

from elbolab.models.posteriors import LOG_2PI
from elbolab.models.posteriors.hierarchical import ConditionalGaussian
from elbolab.models.priors.base import Prior

MOMENT_DRAWS = 10_000


class HierarchicalPrior(Prior):
    """z2 ~ N(0, I) and z1 ~ N(mean(z2), diag(exp(log_var(z2)))), with z = (z1, z2) (Burda et al. 2016, section 5)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.first_dim: int = config.decoded_dim
        self.first = ConditionalGaussian(self.latent_dim - self.first_dim, self.first_dim, config.top_hidden)
        """p(z1 | z2)."""

    def log_prob(self, z: Tensor) -> Tensor:
        z1, z2 = z[..., : self.first_dim], z[..., self.first_dim :]
        return self.first(z2).log_prob(z1) - 0.5 * (z2.square().sum(-1) + z2.shape[-1] * LOG_2PI)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        noise = self.noise(shape, generator)
        z2 = noise[..., self.first_dim :]
        p = self.first(z2)
        return torch.cat([p.mean + (0.5 * p.log_var).exp() * noise[..., : self.first_dim], z2], -1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each dimension of z, (D,) each.

        Of z1 over 10,000 draws of z2, mirrored in pairs and always the same: a hundredth of a standard deviation off.
        """
        return self.remembered(self._moments)

    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        z2 = self.noise((MOMENT_DRAWS // 2,), torch.Generator().manual_seed(0))[:, self.first_dim :]
        p = self.first(torch.cat([z2, -z2]))
        zero = self.zero[self.first_dim :]
        variance = p.variance.mean(0) + p.mean.var(0, correction=0)
        return torch.cat([p.mean.mean(0), zero]), torch.cat([variance, torch.ones_like(zero)])

    def precision(self, z: Tensor) -> Tensor:
        """That of z1 given z2, and 1 for z2."""
        z2 = z[..., self.first_dim :]
        return torch.cat([(-self.first(z2).log_var).exp(), torch.ones_like(z2)], -1)
