"""Probabilistic PCA in closed form, with its exact posterior and exact log p(x): the baseline and the ground truth."""

import math
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from elbolab.data.splits import Batch, Data, DataSpec
from elbolab.models.latent import LatentConfig, LatentModel
from elbolab.models.likelihoods import Gaussian
from elbolab.models.posteriors import LOG_2PI, DiagonalGaussian
from elbolab.support.errors import UserError


class PPCAConfig(LatentConfig):
    """A closed form needs one pass, to measure it."""

    epochs: Annotated[int, Field(gt=0)] = 1
    """Passes over the training images; the first is as good as any."""
    likelihood: Literal["gaussian"] = "gaussian"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Observation model: gaussian on pixels in [0, 1]."""
    prior: Literal["normal"] = "normal"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Prior p(z): N(0, I), the only one of which the closed form is known."""
    posterior: Literal["diagonal"] = "diagonal"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Family of the posteriors q(z | x): orthogonal loadings make the exact ones diagonal."""
    free_sigma: bool = False
    """Whether sigma too is fitted by maximum likelihood; the observation model is then another."""


def fit_ppca(x: Tensor, latent_dim: int, sigma: float | None) -> tuple[Tensor, Tensor, float]:
    """Maximum-likelihood PPCA of images (N, P): the mean (P,), the orthogonal loadings W (P, D), and sigma.

    W = U_D (L_D - sigma^2 I)^(1/2) with U, L the leading eigenvectors and eigenvalues of the sample covariance, zero
    where an eigenvalue is below sigma^2 and beyond P dimensions; a ``sigma`` of None is fitted as the mean of the P - D
    eigenvalues left over (Tipping & Bishop 1999, eqs. 7 and 8, with R = I).
    """
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    if sigma is None:
        left = values[latent_dim:]
        sigma = math.sqrt(max(left.mean().item() if len(left) else 0.0, 1e-6))
    # Eigenvectors have a free sign: the largest entry is made positive, so that every machine agrees.
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scale = (values[:latent_dim] - sigma**2).clamp(min=0).sqrt()
    loadings = (vectors * signs)[:, :latent_dim] * scale
    return mean.float(), F.pad(loadings, (0, latent_dim - loadings.shape[1])).float(), sigma


def ppca_start(images: Tensor, config: LatentConfig) -> tuple[Tensor, Tensor, float]:
    """The PPCA of training images, uint8 (N, C, H, W), from which models start: at the sigma of a gaussian likelihood,
    else at its own.
    """
    sigma = config.sigma if config.likelihood == "gaussian" else None
    return fit_ppca(images.flatten(1).double() / 255, config.latent_dim, sigma)


def linear_posterior(x: Tensor, mean: Tensor, loadings: Tensor, sigma: float) -> DiagonalGaussian:
    """The exact posterior of images (B, P) given orthogonal loadings (P, D) (Tipping & Bishop 1999, eq. 6)."""
    precision = loadings.square().sum(0) / sigma**2 + 1
    posterior_mean = (x - mean) @ loadings / sigma**2 / precision
    return DiagonalGaussian(posterior_mean, -precision.log().expand_as(posterior_mean))


class PPCA(LatentModel):
    """x = W z + mean + sigma noise."""

    Config = PPCAConfig
    mean: Tensor
    loadings: Tensor
    sigma: Tensor

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        pixels = math.prod(spec.shape)
        if config.latent_dim >= pixels:
            raise UserError(f"latent_dim={config.latent_dim} must be less than {pixels}, the pixels of an image")
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("loadings", torch.zeros(pixels, config.latent_dim))
        self.register_buffer("sigma", torch.tensor(config.sigma, dtype=torch.float64))

    @cached_property
    def precision(self) -> torch.dtype:
        return torch.float32  # nothing here is a net

    def prepare(self, data: Data) -> None:
        x = data.train.images.flatten(1).double() / 255
        sigma = None if self.config.free_sigma else self.config.sigma
        mean, loadings, fitted = fit_ppca(x, self.config.latent_dim, sigma)
        self.mean.copy_(mean)
        self.loadings.copy_(loadings)
        self.sigma.fill_(fitted)
        self.likelihood = Gaussian(fitted)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.likelihood = Gaussian(self.sigma.item())

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    @property
    def layers(self) -> nn.Sequential:
        linear = nn.Linear(self.config.latent_dim, len(self.mean))
        linear.weight, linear.bias = nn.Parameter(self.loadings), nn.Parameter(self.mean)
        return nn.Sequential(linear)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.loadings.T + self.mean).reshape(*z.shape[:-1], *self.spec.shape)

    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> DiagonalGaussian:
        return linear_posterior(batch.x.flatten(1), self.mean, self.loadings, self.sigma.item())

    @property
    def inference(self) -> str:
        return "exact"

    def exact_log_px(self, x: Tensor) -> Tensor:
        """log N(x; mean, W W^T + sigma^2 I), by Woodbury's identity and the determinant lemma, in double precision."""
        centred = x.flatten(1).double() - self.mean
        loadings, variance = self.loadings.double(), self.sigma.double() ** 2
        pixels, latent_dim = loadings.shape
        inner = loadings.T @ loadings + variance * torch.eye(latent_dim, dtype=torch.float64, device=x.device)
        projected = centred @ loadings
        explained = (projected * torch.linalg.solve(inner, projected.T).T).sum(-1)
        distance = (centred.square().sum(-1) - explained) / variance
        log_det = (pixels - latent_dim) * variance.log() + torch.linalg.slogdet(inner).logabsdet
        return (-0.5 * (distance + log_det + pixels * LOG_2PI)).float()
