"""Gaussian pixels around a decoded mean, of a standard deviation that is fixed or learned."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.models.likelihoods.base import PIXELS, Likelihood

# That of a fixed one by default, so that runs with and without a learned sigma begin alike, and near the residual of an
# untrained decoder, 1/2; the mean image's needs data, which a checkpoint or a run to start from has not.
START = 0.4
# The rounding of a pixel to a byte has this standard deviation; below it a density says nothing of the image, and of
# images that are all alike it would grow without bound.
LEAST = 1 / (255 * math.sqrt(12))


class Gaussian(Likelihood):
    """Independent pixels with mean ``params`` and standard deviation ``sigma``: N(x; params, sigma^2 I).

    ``sigma`` of the config is a number in units of the pixel range, or "learned": then it is one parameter for all
    pixels and images, trained with the decoder (Rybkin et al. 2021), from 0.4 on and never below the
    rounding of a byte, 1 / (255 sqrt(12)).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.fixed: float | None = None if config.sigma == "learned" else config.sigma
        if self.fixed is None:
            self.log_sigma = nn.Parameter(torch.tensor(math.log(START)))

    @property
    def description(self) -> str:
        return "gaussian sigma=learned" if self.fixed is None else f"gaussian sigma={self.fixed:g}"

    @property
    def sigma(self) -> float | Tensor:
        """The standard deviation, in units of the pixel range."""
        return self.log_sigma.exp().clamp(min=LEAST) if self.fixed is None else self.fixed

    def params(self, activations: Tensor) -> Tensor:
        return activations.sigmoid()

    def from_mean(self, mean: Tensor) -> Tensor:
        return mean

    def mean(self, params: Tensor) -> Tensor:
        return params

    def mean_layer(self) -> nn.Module:
        return nn.Sigmoid()

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        sigma = self.sigma
        log_sigma = sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)
        constant = math.prod(x.shape[1:]) * (log_sigma + 0.5 * math.log(2 * math.pi))
        return (x - params).square().sum(PIXELS) * (-0.5 / sigma**2) - constant

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(params.shape, generator=generator, device=params.device, dtype=params.dtype)
        return params + self.sigma * noise

    def fisher(self, params: Tensor) -> Tensor:
        return torch.ones_like(params) * (1 / self.sigma**2)

    def learned(self) -> dict[str, Tensor]:
        return {"sigma": self.sigma.detach()} if isinstance(self.sigma, Tensor) else {}
