"""The family of all Gaussians: full covariance, by its Cholesky factor."""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Self

import torch
from torch import Tensor

from elbolab.models.posteriors.base import Posterior
from elbolab.models.posteriors.diagonal import LOG_2PI, standard_noise


@dataclass(frozen=True)
class FullGaussian(Posterior):
    """N(mean, L L^T) for each of B images, L lower triangular with a positive diagonal.

    ``mean`` is (B, D). ``log_diagonal`` (B, D) is twice the logarithm of L's diagonal: the log-variance where all else
    is 0. ``below`` (B, D (D - 1) / 2) has the entries below the diagonal, row by row, as multiples of their row's
    diagonal, so that they keep their size however narrow q becomes.
    """

    mean: Tensor
    log_diagonal: Tensor
    below: Tensor

    @staticmethod
    def width(latent_dim: int) -> int:
        return latent_dim * (latent_dim + 3) // 2

    @classmethod
    def from_rows(cls, rows: Tensor) -> Self:
        # W = D (D + 3) / 2 solved for D.
        latent_dim = (isqrt(9 + 8 * rows.shape[-1]) - 3) // 2
        below = latent_dim * (latent_dim - 1) // 2
        return cls(*rows.split([latent_dim, latent_dim, below], -1))

    @classmethod
    def around(cls, mean: Tensor, log_var: Tensor) -> Self:
        latent_dim = mean.shape[-1]
        return cls(mean, log_var, mean.new_zeros(*mean.shape[:-1], latent_dim * (latent_dim - 1) // 2))

    @property
    def scale_tril(self) -> Tensor:
        """L, (B, D, D)."""
        latent_dim = self.mean.shape[-1]
        entries = torch.cat([self.below, self.mean.new_tensor([0.0, 1.0]).expand(*self.mean.shape[:-1], 2)], -1)
        # A gather, since torch.vmap and a compiler take no writing into a matrix of zeros.
        unit = entries.index_select(-1, _places(latent_dim, entries.device)).unflatten(-1, (latent_dim, latent_dim))
        return (0.5 * self.log_diagonal).exp()[..., None] * unit

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.square().sum(-1)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "scale_tril": self.scale_tril}

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        noise = standard_noise(self.mean, samples, generator)
        return self.mean + (self.scale_tril @ noise.movedim(0, -1)).movedim(-1, 0)

    def log_prob(self, z: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self.scale_tril, (z - self.mean).movedim(0, -1), upper=False)
        distance = white.square().sum(-2).movedim(-1, 0)
        return -0.5 * (distance + self.log_diagonal.sum(-1) + z.shape[-1] * LOG_2PI)

    def kl_standard_normal(self) -> Tensor:
        """1/2 (|mean|^2 + tr(L L^T) - D - log det(L L^T)), (B,)."""
        trace = self.scale_tril.square().sum((-2, -1))
        return 0.5 * (self.mean.square().sum(-1) + trace - self.mean.shape[-1] - self.log_diagonal.sum(-1))


@lru_cache(maxsize=8)
def _places(latent_dim: int, device: torch.device) -> Tensor:
    """Where each entry of a unit triangular matrix, row by row, stands among ``below``, a 0 and a 1, (D * D,)."""
    count = latent_dim * (latent_dim - 1) // 2
    places = torch.full((latent_dim, latent_dim), count)
    rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
    places[rows, columns] = torch.arange(count)
    places.fill_diagonal_(count + 1)
    return places.flatten().to(device)
