"""Binary pixels, drawn anew from grey ones at every observation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elbolab.models.likelihoods.base import LEAST_MEAN, PIXELS, Likelihood


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

    def mean_layer(self) -> nn.Module:
        return nn.Sigmoid()

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(params, x.expand_as(params), reduction="none").sum(PIXELS)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(params.sigmoid(), generator=generator)

    def fisher(self, params: Tensor) -> Tensor:
        mean = params.sigmoid()
        return mean * (1 - mean)
