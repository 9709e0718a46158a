"""The family of Gaussians with independent dimensions."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from elbolab.models.posteriors.base import Posterior
from elbolab.support.random_streams import draw

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian(Posterior):
    """N(mean, diag(exp(log_var))) for each of B images; ``mean`` and ``log_var`` are (B, D)."""

    mean: Tensor
    log_var: Tensor

    @staticmethod
    def width(latent_dim: int) -> int:
        return 2 * latent_dim

    @classmethod
    def from_rows(cls, rows: Tensor) -> Self:
        return cls(*rows.chunk(2, -1))

    @classmethod
    def around(cls, mean: Tensor, log_var: Tensor) -> Self:
        return cls(mean, log_var)

    @property
    def variance(self) -> Tensor:
        return self.log_var.exp()

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "log_var": self.log_var}

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        noise = standard_noise(self.mean, samples, generator)
        return torch.addcmul(self.mean, noise, (0.5 * self.log_var).exp())

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (
            ((z - self.mean).square() * (-self.log_var).exp() + self.log_var).sum(-1) + z.shape[-1] * LOG_2PI
        )

    def kl_standard_normal(self) -> Tensor:
        """1/2 sum_d (mean_d^2 + var_d - 1 - log var_d), (B,) (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var).sum(-1)

    def pairwise_log_prob(self, z: Tensor) -> Tensor:
        precision = (-self.log_var).exp()
        constant = (self.mean.square() * precision + self.log_var + LOG_2PI).sum(-1)
        # The squares multiplied out: all z under all posteriors by two products of matrices.
        return -0.5 * (z.square() @ precision.T - 2 * z @ (self.mean * precision).T + constant)


def standard_noise(mean: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Draws (S, B, D) of N(0, I), beside ``mean`` (B, D), as ``elbolab.support.random_streams.draw`` says."""

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)

    return draw(normal, (samples, *mean.shape), 1, mean)
