"""A VAE of two stochastic layers, z2 to z1 to the image, trained on the ELBO or an importance-weighted bound."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from elbolab.config.limits import WIDEST
from elbolab.config.ranges import IntRange
from elbolab.data.batches import Batch, DataSpec
from elbolab.models.base import Model
from elbolab.models.iwae import IWAE, IWAEConfig
from elbolab.models.neural import BetaConfig
from elbolab.models.objectives import Terms, iw_bound
from elbolab.models.posteriors import DiagonalGaussian, Posterior
from elbolab.models.posteriors.hierarchical import ConditionalGaussian, HierarchicalPosterior
from elbolab.models.priors import Prior
from elbolab.models.priors.hierarchical import HierarchicalPrior

# Of the variance of z1, z2's part in the epochs from a PPCA.
SHARED = 0.9


class HierarchicalConfig(BetaConfig, IWAEConfig):
    """The layers and the nets between them."""

    latent_dim: Annotated[int, Field(gt=1, le=WIDEST), IntRange(2, 256, log=True)] = 150
    """Number of latent dimensions, those of both layers together."""
    top_dim: Annotated[int | None, Field(gt=0, lt=WIDEST), IntRange(1, 128, log=True)] = None
    """How many of the latent dimensions are the upper layer's, z2; below latent_dim [default: a third of it]."""
    top_hidden: Annotated[int, Field(gt=0, le=WIDEST), IntRange(32, 512, log=True)] = 100
    """Width of both hidden layers, of tanh units, of each net between z1 and z2."""
    prior: Literal["hierarchical"] = "hierarchical"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Prior p(z): p(z1 | z2) p(z2) with N(0, I) for z2, the only one, since it is what makes the layers."""
    posterior: Literal["diagonal"] = "diagonal"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Family of q(z1 | x) and of q(z2 | z1): Gaussians with a diagonal covariance; their product has another."""
    iw_samples: Annotated[int, Field(gt=0), IntRange(1, 50, log=True)] = 1
    """Importance samples K in the bound, each decoded at every step; 1 is the ELBO with its KL from that sample."""

    @property
    def decoded_dim(self) -> int:
        return self.latent_dim - (max(1, self.latent_dim // 3) if self.top_dim is None else self.top_dim)

    @model_validator(mode="after")
    def _two_layers(self) -> Self:
        if self.decoded_dim < 1:
            raise ValueError(
                f"top_dim={self.top_dim} must be below latent_dim={self.latent_dim}, which counts both layers; lower "
                "top_dim, in a study by narrow, or raise latent_dim"
            )
        if self.gradient == "dreg" and (self.beta != 1 or self.beta_warmup):
            raise ValueError(
                f"gradient='dreg' is of the bound at beta=1, but beta={self.beta:g} and beta_warmup="
                f"{self.beta_warmup:g}; set beta=1 and beta_warmup=0"
            )
        return self


class Hierarchical(IWAE):
    """p(x | z1) p(z1 | z2) p(z2) with q(z1 | x) q(z2 | z1) (Burda et al. 2016, section 5, two stochastic layers).

    The latent vector is z = (z1, z2). The loss is minus the importance-weighted bound of K samples, at K = 1 the ELBO,
    with log w = log p(x | z) + beta (log p(z) - log q(z | x)).

    The epochs from a PPCA are from one of two layers with the same p(x): z1 is its latent vector, of which z2 is a part
    and noise. All four nets learn from draws of its exact posterior; without them z2 is given up at once.
    """

    Config = HierarchicalConfig
    priors: ClassVar[Mapping[str, type[Prior]]] = {"hierarchical": HierarchicalPrior}

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        first_dim = config.decoded_dim
        self.top_encoder = ConditionalGaussian(first_dim, config.latent_dim - first_dim, config.top_hidden)
        """q(z2 | z1)."""

    def start_from(self, field: str, source: Model) -> None:
        if isinstance(source, Hierarchical):
            self.refuse_other(field, source, "decoded_dim", "top_hidden")
        super().start_from(field, source)

    @property
    def layers(self) -> nn.Sequential | None:
        if (decoder := super().layers) is None:
            return None
        chosen = nn.Linear(self.config.latent_dim, self.config.decoded_dim, device=self.device)
        with torch.no_grad():
            nn.init.eye_(chosen.weight)
            nn.init.zeros_(chosen.bias)
        return nn.Sequential(chosen, *decoder)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z[..., : self.config.decoded_dim])

    def encode(self, x: Tensor) -> HierarchicalPosterior:
        return self._of_both(super().encode(x), self.top_encoder)

    def pca_posterior(self, batch: Batch) -> HierarchicalPosterior:
        return self._of_both(super().pca_posterior(batch), self._linear_top)

    def _of_both(self, first: Posterior, top: Callable[[Tensor], DiagonalGaussian]) -> HierarchicalPosterior:
        assert isinstance(first, DiagonalGaussian)
        return HierarchicalPosterior(first.mean, first.log_var, top)

    def _linear_top(self, z1: Tensor) -> DiagonalGaussian:
        """p(z2 | z1) of z1 ~ N(0, I), (..., D1), whose first dimensions are z2's but for noise."""
        top_dim = self.config.latent_dim - self.config.decoded_dim
        shared = z1[..., :top_dim]
        mean = F.pad(math.sqrt(SHARED) * shared, (0, top_dim - shared.shape[-1]))
        log_var = F.pad(torch.full_like(shared, math.log1p(-SHARED)), (0, top_dim - shared.shape[-1]))
        return DiagonalGaussian(mean, log_var)

    def kl_weight(self, epochs: float) -> float:
        return self.config.beta_at(epochs)

    def loss(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        if self.starts:
            return super().loss(terms, kl_weight) - terms.log_pz.mean()
        return -iw_bound(replace(terms, log_pz=kl_weight * terms.log_pz, log_qz=kl_weight * terms.log_qz)).mean()
