"""The family of normalising flows: a Gaussian of full covariance, its coordinates bent by affine couplings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from zuko.transforms import MonotonicAffineTransform

from elbolab.models.posteriors.base import Posterior
from elbolab.models.posteriors.diagonal import LOG_2PI, standard_noise
from elbolab.models.posteriors.full import FullGaussian

# Of each coupling's net. Twice as many, four couplings in place of two, or splines come no closer to p(z | x) on
# digits than by some hundredths of a nat.
HIDDEN = 16
# Pairs of draws that give a mean and a variance: at least so many, and as many as there are dimensions.
PAIRS = 64


@dataclass(frozen=True)
class CouplingFlow(Posterior):
    """z = location + L c2(c1(u)), u ~ N(0, I), for each of B images, all its parameters the image's own.

    c1 moves and scales the second half of the coordinates by a net of the first, c2 the first half by a net of the
    second: a flow that is inverse autoregressive in two blocks (Dinh et al. 2017, eqs. 4 and 5; Kingma et al. 2016),
    so that samples and densities both take one pass. ``location``, ``log_diagonal`` and ``below`` are those of a
    ``FullGaussian``, which this is where ``couplings`` (B, N) is 0. Each net has one layer of tanh, whose weights are
    what ``couplings`` says beside fixed random ones: at 0 a gradient still leads away.
    """

    requirements = ("zuko",)
    location: Tensor
    log_diagonal: Tensor
    below: Tensor
    couplings: Tensor

    @staticmethod
    def width(latent_dim: int) -> int:
        return FullGaussian.width(latent_dim) + _numbers(latent_dim)

    @classmethod
    def from_rows(cls, rows: Tensor) -> Self:
        latent_dim = _latent_dim(rows.shape[-1])
        first, couplings = rows.split([FullGaussian.width(latent_dim), _numbers(latent_dim)], -1)
        gaussian = FullGaussian.from_rows(first)
        return cls(gaussian.mean, gaussian.log_diagonal, gaussian.below, couplings)

    @classmethod
    def around(cls, mean: Tensor, log_var: Tensor) -> Self:
        return cls.of(FullGaussian.around(mean, log_var))

    @classmethod
    def of(cls, q: Posterior) -> Self:
        if isinstance(q, FullGaussian):
            couplings = q.mean.new_zeros(*q.mean.shape[:-1], _numbers(q.mean.shape[-1]))
            return cls(q.mean, q.log_diagonal, q.below, couplings)
        return super().of(q)

    @property
    def mean(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """E_q[z], (B, D), over fixed draws of u: exact where the couplings are 0."""
        return self._at_fixed_draws().mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of each dimension under q, (B, D), over the same draws."""
        return self._at_fixed_draws().var(0, correction=0)

    def _at_fixed_draws(self) -> Tensor:
        draws = _matched_draws(self.location.shape[-1], self.location.device, self.location.dtype)
        return self._forward(draws[:, None].expand(-1, *self.location.shape))

    @property
    def parameters(self) -> dict[str, Tensor]:
        flow = {"location": self.location, "scale_tril": self._gaussian.scale_tril, "couplings": self.couplings}
        return {"mean": self.mean, **flow}

    @property
    def _gaussian(self) -> FullGaussian:
        return FullGaussian(self.location, self.log_diagonal, self.below)

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self._forward(standard_noise(self.location, samples, generator))

    def _forward(self, u: Tensor) -> Tensor:
        """Coordinates u to z, (S, B, D) to the same."""
        given, moved = _halves(u)
        for net in self._nets():
            given, moved = net.of(given)(moved), given
        bent = torch.cat([given, moved], -1)
        return self.location + (self._gaussian.scale_tril @ bent.movedim(0, -1)).movedim(-1, 0)

    def log_prob(self, z: Tensor) -> Tensor:
        white = (z - self.location).movedim(0, -1)
        white = torch.linalg.solve_triangular(self._gaussian.scale_tril, white, upper=False)
        moved, given = _halves(white.movedim(-1, 0))
        log_det = 0.5 * self.log_diagonal.sum(-1)
        for net in reversed(list(self._nets())):
            transform = net.of(given)
            log_det = log_det + transform.log_scale.sum(-1)
            moved, given = given, transform.inv(moved)
        squares = moved.square().sum(-1) + given.square().sum(-1)
        return -0.5 * (squares + z.shape[-1] * LOG_2PI) - log_det

    def _nets(self) -> Iterator["_Net"]:
        """The nets of each coupling, one an image; what one has moved the next is given."""
        sizes = _sizes(self.location.shape[-1])
        parts = self.couplings.split([_numbers_of(*size) for size in sizes], -1)
        return (_Net.from_rows(rows, *size) for rows, size in zip(parts, sizes, strict=True))


@dataclass(frozen=True)
class _Net:
    """One layer of tanh for each of B images: weights (B, H, G), biases (B, H), and of its outputs (B, 2 M, H)."""

    weight: Tensor
    bias: Tensor
    outputs: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor, given: int, moved: int) -> "_Net":
        weight, bias, outputs = rows.split([HIDDEN * given, HIDDEN, 2 * HIDDEN * moved], -1)
        fixed = _fixed_weights(given + 1, rows.device, rows.dtype)
        weight = weight.unflatten(-1, (HIDDEN, given)) + fixed[:, :given]
        return cls(weight, bias + fixed[:, given], outputs.unflatten(-1, (2 * moved, HIDDEN)) / math.sqrt(HIDDEN))

    def of(self, given: Tensor) -> Any:
        """zuko's transform of the other half, (S, B, M), for one half of the coordinates, (S, B, G)."""
        hidden = torch.tanh(torch.einsum("sbg,bhg->sbh", given, self.weight) + self.bias)
        shift, scale = torch.einsum("sbh,boh->sbo", hidden, self.outputs).chunk(2, -1)
        return MonotonicAffineTransform(shift, scale)


def _halves(u: Tensor) -> tuple[Tensor, Tensor]:
    half = u.shape[-1] // 2
    return u[..., :half], u[..., half:]


def _sizes(latent_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of each coupling how many coordinates are given, and how many are moved."""
    half = latent_dim // 2
    return (half, latent_dim - half), (latent_dim - half, half)


def _numbers_of(given: int, moved: int) -> int:
    return HIDDEN * (given + 1 + 2 * moved)


def _numbers(latent_dim: int) -> int:
    """N, the numbers that describe the couplings of one image."""
    return sum(_numbers_of(*sizes) for sizes in _sizes(latent_dim))


@lru_cache(maxsize=8)
def _latent_dim(width: int) -> int:
    """D of rows of this width, which grows with D."""
    latent_dim = 1
    while CouplingFlow.width(latent_dim) < width:
        latent_dim += 1
    return latent_dim


@lru_cache(maxsize=8)
def _fixed_weights(inputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of the hidden layers and, last, their biases, (H, inputs), of variance 1 over their number."""
    draws = torch.randn(HIDDEN, inputs, generator=torch.Generator().manual_seed(0))
    return (draws / math.sqrt(inputs)).to(device, dtype)


@lru_cache(maxsize=8)
def _matched_draws(latent_dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Draws u in pairs of opposite sign, (2 n, D), their mean 0 and their covariance I, as those of N(0, I) are."""
    pairs = max(PAIRS, latent_dim)
    draws = torch.randn(pairs, latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = math.sqrt(pairs) * torch.linalg.qr(draws).Q
    return torch.cat([half, -half]).to(device, dtype)
