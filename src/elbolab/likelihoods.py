"""Observation models: normalised log p(x | z) of an image given what the decoder says of it, in nats."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = (-3, -2, -1)


class Likelihood(Protocol):
    """log p(x | params), where ``params`` is what a decoder gives for one latent vector."""

    @property
    def description(self) -> str:
        """The observation model in words: likelihood, its constants, pixel range and binarisation."""
        ...

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The observation made of pixels ``x`` in [0, 1]; same shape."""
        ...

    def params(self, activations: Tensor) -> Tensor:
        """The parameters that a network's unbounded ``activations`` stand for; same shape."""
        ...

    def from_mean(self, mean: Tensor) -> Tensor:
        """The parameters whose expected image is ``mean`` in [0, 1]; same shape."""
        ...

    def mean(self, params: Tensor) -> Tensor:
        """The expected image, in [0, 1]; same shape."""
        ...

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of the image; same shape."""
        ...

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """log p(x | params) in nats: (B, C, H, W) and (..., B, C, H, W) to (..., B)."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels with mean ``params`` and standard deviation ``sigma``: N(x; params, sigma^2 I)."""

    sigma: float

    @property
    def description(self) -> str:
        return f"gaussian sigma={self.sigma:g}, pixels in [0,1]"

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def params(self, activations: Tensor) -> Tensor:
        return activations.sigmoid()

    def from_mean(self, mean: Tensor) -> Tensor:
        return mean

    def mean(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(params.shape, generator=generator, device=params.device, dtype=params.dtype)
        return params + self.sigma * noise

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        constant = math.prod(x.shape[1:]) * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))
        return (x - params).square().sum(PIXELS) * (-0.5 / self.sigma**2) - constant


@dataclass(frozen=True)
class Bernoulli:
    """Independent binary pixels with logits ``params``; grey pixels are drawn anew at every observation.

    Dynamic binarisation as in Salakhutdinov & Murray 2008 and Burda et al. 2016.
    """

    @property
    def description(self) -> str:
        return "bernoulli, pixels binarised dynamically"

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(x, generator=generator)

    def params(self, activations: Tensor) -> Tensor:
        return activations

    def from_mean(self, mean: Tensor) -> Tensor:
        # A pixel that is black in every training image would otherwise make one white pixel impossible.
        return mean.clamp(1e-3, 1 - 1e-3).logit()

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(params.sigmoid(), generator=generator)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(params, x.expand_as(params), reduction="none").sum(PIXELS)


def make_likelihood(name: str, sigma: float) -> Likelihood:
    """The likelihood of this name; ``sigma`` is the Gaussian's standard deviation, in units of the pixel range."""
    return Gaussian(sigma) if name == "gaussian" else Bernoulli()
