"""Probabilistic PCA in closed form, with its exact posterior and exact log p(x): the baseline and the ground truth."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from elbolab.data.batches import Batch, Data, DataSpec
from elbolab.models.latent import LatentConfig, LatentModel
from elbolab.models.likelihoods.gaussian import Gaussian
from elbolab.models.posteriors import LOG_2PI, DiagonalGaussian
from elbolab.support.counters import counted
from elbolab.support.errors import UserError

# A covariance of so many pixels has its eigenvectors within a second.
FEW_PIXELS, LEAST_BLOCK = 1024, 32
# 32 MB of pixels in double precision, all embedded digits among them.
NUMBERS_AT_ONCE = 2**22
# Of all variance: what float32 cannot tell from none.
ROUNDING = 1e-9


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

    @field_validator("sigma")
    @classmethod
    def _a_number(cls, sigma: float | str) -> float | str:
        if sigma == "learned":
            raise ValueError("is trained by gradient, which ppca is not; take free_sigma=true, by which it is fitted")
        return sigma


def fit_ppca(x: Tensor, latent_dim: int, sigma: float | None) -> tuple[Tensor, Tensor, float]:
    """Maximum-likelihood PPCA of images (N, P), bytes of 0 to 255 that stand for 0 to 1 or numbers that stand for
    themselves: the mean (P,), the orthogonal loadings W (P, D), and sigma.

    W = U_D (L_D - sigma^2 I)^(1/2) with U, L the leading eigenvectors and eigenvalues of the sample covariance, zero
    where an eigenvalue is below sigma^2 and beyond P dimensions; a ``sigma`` of None is fitted as the mean of the P - D
    eigenvalues left over (Tipping & Bishop 1999, eqs. 7 and 8, with R = I). Of more than ``FEW_PIXELS`` the
    eigenvectors are those in a Krylov space, in which log p(x) of an image has converged.
    """
    count, pixels = x.shape
    leading = min(latent_dim, pixels)
    mean = torch.stack([part.sum(0) for part in _parts(x)]).sum(0) / count
    total = sum(part.sub_(mean).square_().sum().item() for part in _parts(x)) / count

    def noise(captured: float) -> float:
        if sigma is not None:
            return sigma**2
        return max((total - captured) / (pixels - leading), 1e-6) if pixels > leading else 1e-6

    if pixels <= FEW_PIXELS:
        basis = torch.eye(pixels, dtype=torch.float64, device=x.device)
    else:
        basis = _krylov_basis(x, mean, leading, lambda captured: max(2e-4 * noise(captured), ROUNDING * total))
    covariance = basis.new_zeros(basis.shape[1], basis.shape[1])
    for part in _parts(x):
        projected = part.sub_(mean) @ basis
        covariance += projected.T @ projected
    values, vectors = torch.linalg.eigh(covariance / count)
    values, vectors = values.flip(0)[:leading], basis @ vectors.flip(1)[:, :leading]
    # Eigenvectors have a free sign: the largest entry is made positive, so that every machine agrees.
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    variance = noise(values.sum().item())
    loadings = vectors * signs * (values - variance).clamp(min=0).sqrt()
    fitted = math.sqrt(variance) if sigma is None else sigma
    return mean.float(), F.pad(loadings, (0, latent_dim - leading)).float(), fitted


def _parts(x: Tensor, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Rows of x (N, P), some at a time in new memory; bytes as 0 to 1."""
    for part in x.split(max(1, NUMBERS_AT_ONCE // x.shape[1])):
        yield part.to(dtype).div_(255) if part.dtype == torch.uint8 else part.to(dtype, copy=True)


def _krylov_basis(x: Tensor, mean: Tensor, leading: int, least_rise: Callable[[float], float]) -> Tensor:
    """Orthonormal directions (P, D) that span the ``leading`` eigenvectors of the covariance of x (N, P).

    They are those in the Krylov space of a random block, which grows until it hardly captures more variance:
    ``least_rise`` is how much more, given what is captured (Musco & Musco 2015, algorithm 2; Golub & Underwood 1977).
    The space has three to five times D directions, of 4 N P multiplications each, in float32: that moves a direction
    less than the rounding of pixels to bytes.
    """
    count, pixels = x.shape
    width = min(pixels, max(leading // 3, LEAST_BLOCK))
    draws = torch.randn(pixels, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = block = torch.linalg.qr(draws.to(x.device)).Q
    covariance, captured, centre = block.new_zeros(0, 0), 0.0, mean.float()
    with counted("PCA of the training images") as done:
        while True:
            image, narrow = torch.zeros_like(block, dtype=torch.float32), block.float()
            for part in _parts(x, torch.float32):
                # In their own type: two types would be converted at each subtraction.
                part -= centre
                image += ((part @ narrow).T @ part).T
                done(len(part))
            image = image.double() / count
            # The covariance in the coordinates of the basis, whose newest directions are the block's.
            corner = basis.T @ image
            covariance = torch.cat([torch.cat([covariance, corner[: len(covariance)]], 1), corner.T])
            before, captured = captured, torch.linalg.eigvalsh(covariance)[-leading:].sum().item()
            if len(covariance) == pixels or captured - before <= least_rise(captured):
                return basis @ torch.linalg.eigh(covariance).eigenvectors[:, -leading:]
            block = image
            # Twice, since the first time leaves rounding errors in directions that were hardly there.
            for _ in range(2):
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
            block = block[:, : pixels - len(covariance)]
            basis = torch.cat([basis, block], 1)


def ppca_start(images: Tensor, config: LatentConfig) -> tuple[Tensor, Tensor, float]:
    """The PPCA of training images, uint8 (N, C, H, W), from which models start: at the fixed sigma of a gaussian
    likelihood, else at its own.
    """
    sigma = config.sigma if config.likelihood == "gaussian" and isinstance(config.sigma, float) else None
    return fit_ppca(images.flatten(1), config.decoded_dim, sigma)


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

    @property
    def precision(self) -> torch.dtype:
        return torch.float32  # nothing here is a net

    def prepare(self, data: Data) -> None:
        sigma = None if self.config.free_sigma else self.config.sigma
        mean, loadings, fitted = fit_ppca(data.train.images.flatten(1), self.config.latent_dim, sigma)
        self.mean.copy_(mean)
        self.loadings.copy_(loadings)
        self.sigma.fill_(fitted)
        self.likelihood = self._gaussian(fitted)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.likelihood = self._gaussian(self.sigma.item())

    def _gaussian(self, sigma: float) -> Gaussian:
        return Gaussian(self.config.model_copy(update={"sigma": sigma}))

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
