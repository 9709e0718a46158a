"""A Gaussian of full covariance close to p(z | x), image by image: what estimates of log p(x) start from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import LOG_2PI
from elbolab.support.gradients import value_and_gradient

ITERATIONS, FULL_STEPS, SAMPLES = 8, 2, 4
# Of a whitened coordinate: decoders of rectifiers have no smaller-scale slope that is worth more.
DIFFERENCE = 1e-2
# Below this mean curvature, in units of the prior's, one value serves all images.
LEAST_CURVATURE = 0.05
CURVATURE_DECODES = 4_000
PER_IMAGE = ("mean", "scale", "inverse")


@dataclass(frozen=True)
class Curvature:
    """Along which directions the images' posteriors are narrower than the prior, in z in units of the prior's scale.

    ``rotation`` (D, D) has orthonormal rows, ``mean`` (D,) their curvature of -log p(x | z) beside the prior's 1, the
    mean over some images, falling; the first ``active`` are worth measuring for each image.
    """

    rotation: Tensor
    mean: Tensor

    @property
    def active(self) -> int:
        """R, how many directions are measured for each image."""
        return max(1, int((self.mean > LEAST_CURVATURE).sum()))


@dataclass(frozen=True)
class GaussianApproximation:
    """N(mean, C) for each of B images, with z as a linear map of whitened coordinates u ~ N(0, I).

    z = mean + scale * (rotation' v); the first R entries of v are ``inverse`` u (B, R, R), each of the others u / rest
    (D - R,). ``mean`` and ``scale`` are (B, D), ``rotation`` (D, D).
    """

    mean: Tensor
    scale: Tensor
    inverse: Tensor
    rotation: Tensor
    rest: Tensor

    @property
    def active(self) -> int:
        """R, the directions whose curvature is the image's own."""
        return self.inverse.shape[-1]

    def to_latent(self, u: Tensor) -> Tensor:
        """z of whitened coordinates, (S, B, D) to the same."""
        active = self.active
        first = torch.einsum("bij,sbj->sbi", self.inverse, u[..., :active])
        v = torch.cat([first, u[..., active:] / self.rest], -1)
        return self.mean + self.scale * (v @ self.rotation)

    def to_whitened(self, z: Tensor) -> Tensor:
        """The whitened coordinates of z, (S, B, D) to the same."""
        v = ((z - self.mean) / self.scale) @ self.rotation.T
        active = self.active
        first = torch.linalg.solve_triangular(self.inverse, v[..., :active, None], upper=True)[..., 0]
        return torch.cat([first, v[..., active:] * self.rest], -1)

    @property
    def log_det(self) -> Tensor:
        """log |dz / du|, (B,)."""
        diagonal = torch.diagonal(self.inverse, dim1=-2, dim2=-1)
        return self.scale.log().sum(-1) + diagonal.log().sum(-1) - self.rest.log().sum()

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples (S, B, D)."""
        shape = (samples, *self.mean.shape)
        return self.to_latent(torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, C), (S, B, D) to (S, B), in nats."""
        return standard_log_prob(self.to_whitened(z)) - self.log_det

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Those of all images of ``parts``, which are of one curvature."""
        mean, scale, inverse = (torch.cat([getattr(one, name) for one in parts]) for name in PER_IMAGE)
        return cls(mean, scale, inverse, parts[0].rotation, parts[0].rest)

    def __getitem__(self, rows: Any) -> Self:
        return replace(self, **{name: getattr(self, name)[rows] for name in PER_IMAGE})

    def __len__(self) -> int:
        return len(self.mean)


def standard_log_prob(u: Tensor) -> Tensor:
    """log N(u; 0, I), (..., D) to (...), in nats."""
    return -0.5 * (u.square().sum(-1) + u.shape[-1] * LOG_2PI)


@torch.no_grad()
def measure_curvature(model: LatentModel, means: Tensor) -> Curvature:
    """The mean curvature over images whose posteriors have these ``means``, (B, D); of the first ones, if many."""
    latent_dim = means.shape[-1]
    means = means[: max(1, CURVATURE_DECODES // latent_dim)]
    eye = torch.eye(latent_dim, device=means.device)
    total = torch.zeros(latent_dim, latent_dim, dtype=torch.float64, device=means.device)
    whole = Curvature(eye, torch.ones(latent_dim, device=means.device))
    for z in means.split(max(1, model.decodes_at_once // latent_dim)):
        total += _curvature(model, z, _first(model, z, whole)).double().sum(0)
    values, vectors = torch.linalg.eigh(total / len(means))
    return Curvature(vectors.flip(1).T.to(means.dtype).contiguous(), (values.flip(0) - 1).clamp(min=0).to(means.dtype))


@torch.no_grad()
def fit_gaussian(
    model: LatentModel,
    x: Tensor,
    start: Tensor,
    curvature: Curvature,
    generator: torch.Generator | None = None,
) -> GaussianApproximation:
    """The Gaussian of about the highest ELBO for images (B, C, H, W), near the means ``start``, (B, D).

    The precision becomes the mean of -d^2 log p(x, z) / dz^2 over the Gaussian's own samples, and the mean moves to
    where that of d log p(x, z) / dz is 0 (Opper & Archambeau 2009, eq. 8), by stochastic natural-gradient ascent (Khan
    et al. 2018, section 3.1). The Hessian is that of Gauss and Newton: J' F J with the decoder's Jacobian J, by
    differences along the active directions, and the Fisher information F of the likelihood. A mode is no better start
    than the mean of q: decoders of rectifiers have high ones with little mass around them.
    """
    found = _first(model, start, curvature)
    hessian = torch.eye(found.active, device=x.device, dtype=found.mean.dtype)
    for iteration in range(ITERATIONS):
        shape = (SAMPLES // 2, *found.mean.shape)
        noise = torch.randn(shape, generator=generator, device=x.device, dtype=found.mean.dtype)
        z = found.to_latent(torch.cat([noise, -noise]))
        # One sample at a time, since its Jacobian is as large as some tens of images.
        seen = torch.stack([_curvature(model, at, found) for at in z]).mean(0)
        rate = max(1, iteration - FULL_STEPS + 2) ** -0.7
        hessian = torch.lerp(hessian, seen, rate)
        found = _step(model, x, replace(found, inverse=_inverse(hessian)), z, rate)
    return found


def _first(model: LatentModel, start: Tensor, curvature: Curvature) -> GaussianApproximation:
    active = curvature.active
    hessian = (1 + curvature.mean[:active]).diag().expand(len(start), -1, -1)
    rest = (1 + curvature.mean[active:]).sqrt()
    return GaussianApproximation(start, _prior_scale(model, start), _inverse(hessian), curvature.rotation, rest)


def _step(model: LatentModel, x: Tensor, found: GaussianApproximation, z: Tensor, rate: float) -> GaussianApproximation:
    """Move the mean by ``rate`` of a Newton step along the mean gradient at z (S, B, D)."""
    slope = (found.scale * value_and_gradient(lambda at: model.log_joint(x, at), z)[1].mean(0)) @ found.rotation.T
    # The step in whitened coordinates, where none is longer than a draw from the Gaussian may be.
    first = torch.einsum("bji,bj->bi", found.inverse, slope[:, : found.active])
    step = torch.cat([first, slope[:, found.active :] / found.rest], -1).nan_to_num(0.0, 0.0, 0.0)
    longest = math.sqrt(step.shape[-1]) + 3
    step = step * (longest / step.norm(dim=-1, keepdim=True).clamp(min=longest))
    return replace(found, mean=found.to_latent(rate * step[None])[0])


def _prior_scale(model: LatentModel, z: Tensor) -> Tensor:
    return model.prior.precision(z).rsqrt()


def _inverse(hessian: Tensor) -> Tensor:
    """L'^-1 of hessians L L', (B, R, R), upper triangular: its product with noise has the covariance hessian^-1."""
    lower = torch.linalg.cholesky(hessian)
    eye = torch.eye(hessian.shape[-1], device=hessian.device, dtype=hessian.dtype)
    return torch.linalg.solve_triangular(lower.mT, eye, upper=True)


def _curvature(model: LatentModel, z: Tensor, found: GaussianApproximation) -> Tensor:
    """I + J' F J at z (B, D) along the active directions of z / scale, (B, R, R)."""
    params = model.decode(z)
    fisher = model.likelihood.fisher(params).flatten(1)
    steps = found.rotation[: found.active, None] * (DIFFERENCE * found.scale)
    parts = [
        (model.decode(z + step) - params).flatten(2) / DIFFERENCE
        for step in steps.split(max(1, model.decodes_at_once // len(z)))
    ]
    jacobian = torch.cat(parts).transpose(0, 1)
    curvature = ((jacobian * fisher[:, None]) @ jacobian.mT).nan_to_num(0.0, 0.0, 0.0)
    return curvature + torch.eye(found.active, device=z.device, dtype=z.dtype)
