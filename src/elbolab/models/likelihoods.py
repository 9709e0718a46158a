"""Observation models: normalised log p(x | z) of an image given what the decoder says of it, in nats."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = (-3, -2, -1)
# A pixel that is black in every training image would otherwise make one white pixel impossible.
LEAST_MEAN = 1e-3


class Likelihood(ABC):
    """log p(x | params), where ``params`` is what a decoder gives for one latent vector."""

    pixels = "pixels in [0,1]"
    """What ``observe`` makes of pixels in [0, 1], in words."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The likelihood and its constants, in words."""

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The observation made of pixels ``x`` in [0, 1]; same shape."""
        return x

    def params(self, activations: Tensor) -> Tensor:
        """The parameters that a network's unbounded ``activations`` stand for; same shape."""
        return activations

    @abstractmethod
    def from_mean(self, mean: Tensor) -> Tensor:
        """The parameters whose expected image is ``mean`` in [0, 1]; same shape."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The expected image, in [0, 1]; same shape."""

    def mean_layer(self) -> nn.Module:
        """From a network's unbounded activations to the expected image, as a layer; same shape."""
        return nn.Sigmoid()

    @abstractmethod
    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """log p(x | params) in nats: (B, C, H, W) and (..., B, C, H, W) to (..., B)."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x from p(x | params); same shape."""

    @abstractmethod
    def fisher(self, params: Tensor) -> Tensor:
        """The Fisher information of each pixel in its parameter, -E[d^2 log p(x | params) / d params^2]; same shape."""


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent pixels with mean ``params`` and standard deviation ``sigma``: N(x; params, sigma^2 I)."""

    sigma: float

    @property
    def description(self) -> str:
        return f"gaussian sigma={self.sigma:g}"

    def params(self, activations: Tensor) -> Tensor:
        return activations.sigmoid()

    def from_mean(self, mean: Tensor) -> Tensor:
        return mean

    def mean(self, params: Tensor) -> Tensor:
        return params

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        constant = math.prod(x.shape[1:]) * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))
        return (x - params).square().sum(PIXELS) * (-0.5 / self.sigma**2) - constant

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(params.shape, generator=generator, device=params.device, dtype=params.dtype)
        return params + self.sigma * noise

    def fisher(self, params: Tensor) -> Tensor:
        return torch.full_like(params, 1 / self.sigma**2)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary pixels with logits ``params``; grey pixels are drawn anew at every observation.

    Dynamic binarisation as in Salakhutdinov & Murray 2008 and Burda et al. 2016.
    """

    pixels = "pixels binarised dynamically"

    @property
    def description(self) -> str:
        return "bernoulli"

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(x, generator=generator)

    def from_mean(self, mean: Tensor) -> Tensor:
        return mean.clamp(LEAST_MEAN, 1 - LEAST_MEAN).logit()

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(params, x.expand_as(params), reduction="none").sum(PIXELS)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(params.sigmoid(), generator=generator)

    def fisher(self, params: Tensor) -> Tensor:
        mean = params.sigmoid()
        return mean * (1 - mean)


# Below it, differences of nearly equal numbers are worse than a series of three terms.
SERIES_BELOW = 0.25


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Independent pixels in [0, 1] with logits ``params``: p(x) = C(s) s^x (1 - s)^(1 - x), s = sigmoid(params).

    C(s) = 2 atanh(1 - 2s) / (1 - 2s), 2 at s = 1/2 (Loaiza-Ganem & Cunningham 2019, eqs. 7 and 8). In the logit l,
    p(x) = exp((x - 1/2) l) (l/2) / sinh(l/2).
    """

    @property
    def description(self) -> str:
        return "continuous bernoulli"

    def from_mean(self, mean: Tensor) -> Tensor:
        mean = mean.clamp(LEAST_MEAN, 1 - LEAST_MEAN)
        low = torch.full_like(mean, -1.01 / LEAST_MEAN, dtype=torch.float64)
        high = -low
        # The mean rises with the logit; each step halves what it may lie in.
        for _ in range(64):
            middle = (low + high) / 2
            below = self.mean(middle) < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.to(mean.dtype)

    def mean(self, params: Tensor) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l, and 1/2 at l = 0 (Loaiza-Ganem & Cunningham 2019, eq. 9)."""
        near, far = _near_and_far(params)
        series = 0.5 + near / 12 - near**3 / 720 + near**5 / 30240
        return torch.where(params.abs() < SERIES_BELOW, series, -1 / torch.expm1(-far) - 1 / far)

    def mean_layer(self) -> nn.Module:
        return ContinuousBernoulliMean()

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        near, far = _near_and_far(params)
        far = far.abs()
        series = near**2 / 24 - near**4 / 2880 + near**6 / 181440
        log_sinhc = torch.where(
            params.abs() < SERIES_BELOW, series, far / 2 + torch.log(-torch.expm1(-far)) - torch.log(far)
        )
        return ((x - 0.5) * params - log_sinhc).sum(PIXELS)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of the distribution function."""
        uniform = torch.rand(params.shape, generator=generator, device=params.device, dtype=params.dtype)
        # Down to this size the inverse is the uniform draw itself, to single precision.
        size = params.abs().clamp(min=1e-7)
        falling = -torch.log1p(uniform * torch.expm1(-size)) / size
        return torch.where(params > 0, 1 - falling, falling).clamp(0, 1)

    def fisher(self, params: Tensor) -> Tensor:
        """The variance 1 / l^2 - 1 / (4 sinh^2(l / 2)), since the logit is the natural parameter."""
        near, far = _near_and_far(params)
        series = 1 / 12 - near**2 / 240 + near**4 / 6048
        # sinh of more than 80 has no square in single precision, and 1 over it is nothing.
        sinh = torch.sinh((far / 2).clamp(-40, 40))
        return torch.where(params.abs() < SERIES_BELOW, series, 1 / far**2 - 1 / (4 * sinh**2))


class ContinuousBernoulliMean(nn.Module):
    """Logits to the mean of a continuous Bernoulli; same shape."""

    def forward(self, logits: Tensor) -> Tensor:
        return ContinuousBernoulli().mean(logits)


def _near_and_far(params: Tensor) -> tuple[Tensor, Tensor]:
    """The logits near 0, and those far from it, the others set to where neither value nor gradient is infinite."""
    small = params.abs() < SERIES_BELOW
    return torch.where(small, params, 0), torch.where(small, 1, params)


def make_likelihood(name: str, sigma: float) -> Likelihood:
    """The likelihood of this name; ``sigma`` is the Gaussian's standard deviation, in units of the pixel range."""
    likelihoods = {"bernoulli": Bernoulli(), "continuous_bernoulli": ContinuousBernoulli()}
    return likelihoods.get(name, Gaussian(sigma))
