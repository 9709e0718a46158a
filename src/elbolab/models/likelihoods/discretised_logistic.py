"""Pixels of 256 values, each with the probability that a logistic distribution gives the bin around it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from elbolab.models.likelihoods.base import LEAST_MEAN, PIXELS, Likelihood

# Of a bin, in units of the pixel range; k / 255 stands in its middle.
WIDTH = 1 / 255
# As the code of Tomczak & Welling 2018 has it: a scale of 2.8 grey values, below which one pixel that is far from its
# location moves the nets more than all others.
LEAST_LOG_SCALE = -4.5
# Of the whole distribution in the logarithm of its scale.
WHOLE = 1 / 3 + math.pi**2 / 9


class DiscretisedLogistic(Likelihood):
    """Independent pixels k / 255, k from 0 to 255: P(x) = F(x + 1/510) - F(x - 1/510), F(x) = sigmoid((x - m) / s).

    F is 0 below the lowest bin's lower edge and 1 above the highest bin's upper one, so that the 256 probabilities sum
    to 1 (Salimans et al. 2017, eq. 2, of one component). ``params`` are the locations m and the log-scales log s, in
    units of the pixel range: m = 1/2 + a has no bounds, so that a black pixel may be certain, and log s = -4.5
    sigmoid(-b) for activations a and b, between the bounds of Tomczak & Welling 2018.
    """

    pixels = "pixels of 256 values"
    per_pixel = 2
    of_bytes = True

    @property
    def description(self) -> str:
        return "discretised logistic"

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The nearest of the 256 values, which pixels of a dataset are."""
        return (255 * x).round() / 255

    def params(self, activations: Tensor) -> Tensor:
        location, scale = _halves(activations)
        return torch.cat([0.5 + location, LEAST_LOG_SCALE * (-scale).sigmoid()], -3)

    def from_mean(self, mean: Tensor) -> Tensor:
        """Of a scale whose variance is the largest of a pixel of this mean, mean (1 - mean), within the bounds."""
        mean = mean.clamp(LEAST_MEAN, 1 - LEAST_MEAN)
        log_scale = (0.5 * (3 * mean * (1 - mean)).log() - math.log(math.pi)).clamp(LEAST_LOG_SCALE, 0)
        scale = log_scale.exp()
        odds = (-torch.expm1(-mean / scale)).log() - (-torch.expm1((mean - 1) / scale)).log()
        return torch.cat([mean + scale * odds, log_scale], -3)

    def mean(self, params: Tensor) -> Tensor:
        """s log((1 + exp(m / s)) / (1 + exp((m - 1) / s))), the mean of the logistic cut to [0, 1].

        The mean over the 256 values is the midpoint rule of its integral, and differs by less than 1.5e-5.
        """
        location, log_scale = _halves(params)
        scale = log_scale.exp()
        return (scale * (F.softplus(location / scale) - F.softplus((location - 1) / scale))).clamp(0, 1)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """By sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), in which nothing cancels."""
        location, log_scale = _halves(params)
        per_scale = (-log_scale).exp()
        centre, half = (x - location) * per_scale, 0.5 * WIDTH * per_scale
        below_upper, above_lower = F.logsigmoid(centre + half), F.logsigmoid(half - centre)
        between = below_upper + above_lower + (-torch.expm1(-2 * half)).log()
        inner = torch.where(x > 1 - 0.5 * WIDTH, above_lower, between)
        return torch.where(x < 0.5 * WIDTH, below_upper, inner).sum(PIXELS)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of F, rounded to the bin that it falls into."""
        location, log_scale = _halves(params)
        uniform = torch.rand(location.shape, generator=generator, device=params.device, dtype=params.dtype)
        return self.observe((location + log_scale.exp() * uniform.logit()).clamp(0, 1))

    def fisher(self, params: Tensor) -> Tensor:
        """That of a logistic cut to the edges of the outer bins, as if the inner ones had no width.

        Of the location (1 - P(0)^3 - P(1)^3) / (3 s^2); with bins that have a width every other P(x)^3 is taken off
        too, at most 0.42% here. Of the log-scale by ``_up_to`` either edge, at most 0.01 too large of up to 1.43. The
        two are correlated where an outer bin has much of the probability, which is left out.
        """
        location, log_scale = _halves(params)
        per_scale = (-log_scale).exp()
        to_lower, to_upper = (location - 0.5 * WIDTH) * per_scale, (1 - 0.5 * WIDTH - location) * per_scale
        lowest, highest = (-to_lower).sigmoid(), (-to_upper).sigmoid()
        # 1 - P^3 as (1 - P) (1 + P + P^2), in which nothing cancels, for the larger of the two.
        outer, rest = torch.maximum(lowest, highest), torch.minimum(to_lower, to_upper).sigmoid()
        cut = rest * (1 + outer + outer**2) - torch.minimum(lowest, highest) ** 3
        of_location = cut * per_scale**2 / 3
        of_scale = _up_to(to_lower) + _up_to(to_upper) - WHOLE
        return torch.cat([of_location, of_scale], -3).clamp(min=0)


def _halves(params: Tensor) -> tuple[Tensor, Tensor]:
    location, scale = params.chunk(2, -3)
    return location, scale


def _up_to(edge: Tensor) -> Tensor:
    """The Fisher information in the log-scale of a standard logistic u of which all above ``edge`` is one outcome.

    int_{-inf}^edge f(u) (1 + u F(-u))^2 du, f the density; in closed form but for a dilogarithm, whose series leaves
    less than 1e-6.
    """
    # On either side of 0 what decays, so that nothing large cancels.
    near = -edge.abs()
    outer, soft = near.sigmoid(), F.softplus(near)
    dilogarithm = -soft - soft**2 / 4 - soft**3 / 36 + soft**5 / 3600
    tail = outer / 3 + 2 / 3 * (near * (outer * (1 - outer) - soft) - dilogarithm)
    below = tail + near**2 * outer * (3 - 3 * outer + outer**2) / 3
    return torch.where(edge < 0, below, WHOLE - tail - near**2 * outer**3 / 3)
