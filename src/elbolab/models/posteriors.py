"""Families of posteriors q(z | x): draws, densities, KL to the prior and means."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elbolab.support.random_streams import draw

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) for each of B images; ``mean`` and ``log_var`` are (B, D)."""

    mean: Tensor
    log_var: Tensor

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised samples (S, B, D)."""

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)

        noise = draw(normal, (samples, *self.mean.shape), 1, self.mean)
        return torch.addcmul(self.mean, noise, (0.5 * self.log_var).exp())

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), (S, B, D) to (S, B)."""
        return -0.5 * (
            ((z - self.mean).square() * (-self.log_var).exp() + self.log_var).sum(-1) + z.shape[-1] * LOG_2PI
        )

    def kl(self) -> Tensor:
        """KL(q || N(0, I)), (B,) (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var).sum(-1)

    def detach(self) -> "DiagonalGaussian":
        return DiagonalGaussian(self.mean.detach(), self.log_var.detach())

    def __getitem__(self, rows: Any) -> "DiagonalGaussian":
        return DiagonalGaussian(self.mean[rows], self.log_var[rows])
