"""Posteriors of two layers, q(z1 | x) q(z2 | z1), and the conditional Gaussian that links the layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NoReturn, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from elbolab.models.posteriors.base import Posterior
from elbolab.models.posteriors.diagonal import DiagonalGaussian, standard_noise

# Draws of z1, half of them the others mirrored, over which the moments of z2 are taken.
MOMENT_DRAWS = 64


class ConditionalGaussian(nn.Module):
    """N(mean(h), diag(exp(log_var(h)))) of ``outputs`` numbers, given vectors h of ``inputs``.

    Two layers of ``hidden`` tanh units give both (Burda et al. 2016, section 5). They compute in the type of their
    weights, whatever the precision of training: they are a small part of the work.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        first, second, last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * outputs)
        self.net = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)

    def forward(self, given: Tensor) -> DiagonalGaussian:
        """Given (..., inputs), the distribution, its tensors (..., outputs)."""
        weight = next(self.net.parameters())
        return DiagonalGaussian.from_rows(self.net(given.to(weight.dtype)).to(given.dtype))


@dataclass(frozen=True)
class HierarchicalPosterior(Posterior):
    """q(z | x) = q(z1 | x) q(z2 | z1) with z = (z1, z2) for each of B images.

    q(z1 | x) is N(``first_mean``, diag(exp(``first_log_var``))), (B, D1) each; ``top`` gives q(z2 | z1) of all images.
    ``mean`` and ``variance`` of z2, which have no closed form, are those over 64 draws of z1, mirrored in pairs and the
    same for all images: for equal q always equal numbers, without gradients.
    """

    first_mean: Tensor
    first_log_var: Tensor
    top: Callable[[Tensor], DiagonalGaussian]

    @staticmethod
    def width(latent_dim: int) -> NoReturn:
        raise TypeError("a HierarchicalPosterior has a net beside its rows; give it q(z1 | x) and q(z2 | z1)")

    @classmethod
    def from_rows(cls, rows: Tensor) -> NoReturn:
        cls.width(rows.shape[-1])

    @classmethod
    def around(cls, mean: Tensor, log_var: Tensor) -> NoReturn:
        cls.width(mean.shape[-1])

    def like(self, mean: Tensor, log_var: Tensor) -> Self:
        """That of this mean and these variances of z1; q(z2 | z1) stays as it is."""
        dims = self.first_mean.shape[-1]
        return self.with_tensors((mean[..., :dims], log_var[..., :dims]))

    @property
    def first(self) -> DiagonalGaussian:
        """q(z1 | x)."""
        return DiagonalGaussian(self.first_mean, self.first_log_var)

    @cached_property
    @torch.no_grad()
    def _top_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of z2, (B, D2) each."""
        half = torch.Generator().manual_seed(0)
        noise = torch.randn((MOMENT_DRAWS // 2, 1, self.first_mean.shape[-1]), generator=half).to(self.first_mean)
        z1 = self.first_mean + (0.5 * self.first_log_var).exp() * torch.cat([noise, -noise])
        q = self.top(z1)
        return q.mean.mean(0), q.variance.mean(0) + q.mean.var(0, correction=0)

    @property
    def mean(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """E_q[z], (B, D)."""
        return torch.cat([self.first_mean, self._top_moments[0]], -1)

    @property
    def variance(self) -> Tensor:
        return torch.cat([self.first_log_var.exp(), self._top_moments[1]], -1)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Mean and log-variance of each dimension of both layers, as a diagonal Gaussian has them."""
        return {"mean": self.mean, "log_var": self.variance.log()}

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        z1 = self.first.sample(samples, generator)
        q = self.top(z1)
        return torch.cat([z1, q.mean + (0.5 * q.log_var).exp() * standard_noise(q.mean[0], samples, generator)], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        z1, z2 = self._layers(z)
        return self.first.log_prob(z1) + self.top(z1).log_prob(z2)

    def pairwise_log_prob(self, z: Tensor) -> Tensor:
        z1, z2 = self._layers(z)
        return self.first.pairwise_log_prob(z1) + self.top(z1).log_prob(z2)[:, None]

    def detach(self) -> Self:
        """The same without gradients, those of the net's weights among them; by z it still has one."""
        fixed = super().detach()
        if not isinstance(self.top, nn.Module):
            return fixed
        weights = {name: value.detach() for name, value in self.top.named_parameters()}
        return replace(fixed, top=partial(functional_call, self.top, weights))

    def _layers(self, z: Tensor) -> tuple[Tensor, Tensor]:
        dims = self.first_mean.shape[-1]
        return z[..., :dims], z[..., dims:]
