"""The contract of a likelihood, an observation model: normalised log p(x | z) of an image given what is decoded."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

PIXELS = (-3, -2, -1)
# A pixel that is black in every training image would otherwise make one white pixel impossible.
LEAST_MEAN = 1e-3


class Likelihood(nn.Module, ABC):
    """log p(x | params), where ``params`` is what a decoder gives for one latent vector.

    It is made from the config of its model, of which it reads what fields it needs. Its own parameters, if it has any,
    are the same for all images and trained with the decoder's. To make one draws no random number.

    Images are (..., C, H, W), a network's activations and ``params`` (..., P C, H, W) with P ``per_pixel``: first one
    parameter of all C channels, then the next.
    """

    pixels = "pixels in [0,1]"
    """What ``observe`` makes of pixels in [0, 1], in words."""
    per_pixel = 1
    """P, the parameters of each number of an image, which the decoder gives."""
    of_bytes = False
    """Whether p(x | params) is a probability of the 256 values that a byte has, whose unit may be bits."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()

    @property
    @abstractmethod
    def description(self) -> str:
        """The likelihood and its constants, in words; nothing that training changes."""

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The observation made of pixels ``x`` in [0, 1]; same shape."""
        return x

    def params(self, activations: Tensor) -> Tensor:
        """The parameters that a network's unbounded ``activations`` stand for; same shape."""
        return activations

    @abstractmethod
    def from_mean(self, mean: Tensor) -> Tensor:
        """Parameters whose expected image is ``mean`` in [0, 1], (..., C, H, W) to (..., P C, H, W)."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The expected image, (..., P C, H, W) to (..., C, H, W), in [0, 1]."""

    def mean_layer(self) -> nn.Module:
        """From a network's unbounded activations to the expected image, as a layer; shapes as ``mean``."""
        return MeanLayer(self)

    @abstractmethod
    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """log p(x | params) in nats: (B, C, H, W) and (..., B, P C, H, W) to (..., B)."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x from p(x | params), (..., P C, H, W) to (..., C, H, W)."""

    @abstractmethod
    def fisher(self, params: Tensor) -> Tensor:
        """The Fisher information of each pixel in each of its parameters, -E[d^2 log p(x | params) / d params^2]; same
        shape. It only steers where estimates of log p(x) start.
        """

    def learned(self) -> dict[str, Tensor]:
        """What training logs of its own parameters, scalars by the names of their metrics."""
        return {}


class MeanLayer(nn.Module):
    """A network's unbounded activations to the expected image of ``likelihood``."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, activations: Tensor) -> Tensor:
        return self.likelihood.mean(self.likelihood.params(activations))
