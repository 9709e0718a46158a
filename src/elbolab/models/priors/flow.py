"""A normalising flow as the prior, learned with the decoder."""

from typing import Any

import torch
from torch import Tensor
from zuko.flows import NSF

from elbolab.models.posteriors import LOG_2PI
from elbolab.models.priors.base import Prior

TRANSFORMS, HIDDEN = 3, (64, 64)
# Draws of fixed seed that give the moments.
DRAWS = 4096


class SplineFlow(Prior):
    """u = f(z) is N(0, I), f of three masked autoregressive transforms by rational-quadratic splines.

    A neural spline flow (Durkan et al. 2019) with nets of two layers of 64; beyond [-5, 5] a spline is the identity. A
    density takes one pass through each net, a draw D of them.
    """

    requirements = ("zuko",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # Its masks are computed, which the device "meta" cannot.
        with torch.device("cpu"):
            self.transform = NSF(self.latent_dim, transforms=TRANSFORMS, hidden_features=HIDDEN).transform

    def log_prob(self, z: Tensor) -> Tensor:
        u, log_det = self.transform().call_and_ladj(z)
        return log_det - 0.5 * (u.square().sum(-1) + z.shape[-1] * LOG_2PI)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.transform().inv(self.noise(shape, generator))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over 4,096 draws, always the same."""
        return self.remembered(self._moments)

    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        z = self.sample((DRAWS,), torch.Generator().manual_seed(0))
        return z.mean(0), z.var(0)
