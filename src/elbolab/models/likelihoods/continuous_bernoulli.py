"""Grey pixels in [0, 1] under the continuous Bernoulli distribution."""

import torch
from torch import Tensor

from elbolab.models.likelihoods.base import LEAST_MEAN, PIXELS, Likelihood

# Below it, differences of nearly equal numbers are worse than a series of three terms.
SERIES_BELOW = 0.25


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


def _near_and_far(params: Tensor) -> tuple[Tensor, Tensor]:
    """The logits near 0, and those far from it, the others set to where neither value nor gradient is infinite."""
    small = params.abs() < SERIES_BELOW
    return torch.where(small, params, 0), torch.where(small, 1, params)
