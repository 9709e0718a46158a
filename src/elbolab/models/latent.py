"""The contract of latent-variable models: likelihood, prior, posterior family, inference, and three log-densities."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from elbolab.config.limits import WIDEST
from elbolab.config.ranges import Choices, FloatRange, IntRange
from elbolab.config.schema import Config
from elbolab.data.batches import Batch, DataSpec
from elbolab.models.base import Model
from elbolab.models.likelihoods import LIKELIHOODS, PIXELS, Likelihood
from elbolab.models.objectives import Terms, elbo
from elbolab.models.posteriors import POSTERIORS, Posterior
from elbolab.models.priors import PRIORS, Prior

# Of the posterior of one image: a network's last layer for so many is 1 GB of weights.
MOST_NUMBERS = 1_000_000
# On a CPU fewer are slower and more no faster; a GPU wants enough to do.
DECODES_AT_ONCE = {"cpu": 500, "cuda": 20_000}
# Of images with more numbers than 64 by 64 pixels in colour fewer are decoded, to take no more memory.
NUMBERS_DECODED = 3 * 64 * 64
# Times lr: thousands of a net's weights act together, and one parameter alone would take thousands of Adam's steps. A
# sigma learned at lr itself was still at 0.32 after 480 steps, at ten times that at its end of 0.14.
LIKELIHOOD_LR = 10.0
BINARISED = {"once": "pixels binarised once", "half": "pixels binarised at a half"}


class LatentConfig(Config):
    """The prior, the family of posteriors and the observation model, which every latent-variable model has."""

    latent_dim: Annotated[int, Field(gt=0, le=WIDEST), IntRange(2, 256, log=True)] = 200
    """Number of latent dimensions."""
    likelihood: Annotated[Literal[tuple(LIKELIHOODS)], Choices(tuple(LIKELIHOODS))] = "gaussian"  # pyright: ignore
    """Observation model: gaussian or continuous_bernoulli on pixels in [0, 1], bernoulli on pixels binarised at every
    visit, discretised_logistic on pixels of 256 values, of which log p(x) is in bits too."""
    sigma: Annotated[Annotated[float, Field(gt=0)] | Literal["learned"], FloatRange(0.05, 1.0, log=True)] = 0.4
    """Standard deviation of the gaussian observation model, in units of the pixel range, or learned: one for all pixels
    and images, trained with the decoder."""
    prior: Annotated[Literal[tuple(PRIORS)], Choices(tuple(PRIORS))] = "normal"  # pyright: ignore
    """Prior p(z): N(0, I), or one that is trained with the decoder: a mixture of Gaussians, vamp, which mixes the
    encoder's posteriors of trained pseudo-inputs, or a normalising flow."""
    posterior: Annotated[Literal[tuple(POSTERIORS)], Choices(tuple(POSTERIORS))] = "diagonal"  # pyright: ignore
    """Family of the posteriors q(z | x): Gaussians with a diagonal covariance; with a full one, which takes
    D (D + 3) / 2 numbers an image for D latent dimensions; or a flow, a full one that affine couplings bend."""

    has_encoder: ClassVar[bool] = False
    """Whether models of this config have an encoder."""

    @model_validator(mode="after")
    def _prior_of_an_encoder(self) -> Self:
        if self.prior in PRIORS and PRIORS[self.prior].needs_encoder and not self.has_encoder:
            others = ", ".join(name for name in PRIORS if not PRIORS[name].needs_encoder)
            raise ValueError(
                f"prior={self.prior!r} is made of an encoder's posteriors, and this model has no encoder; choose one "
                f"of {others}"
            )
        return self

    @property
    def decoded_dim(self) -> int:
        """How many of the latent dimensions, the first ones, p(x | z) depends on."""
        return self.latent_dim

    @model_validator(mode="after")
    def _posterior_of_a_size(self) -> Self:
        if (width := POSTERIORS[self.posterior].width(self.latent_dim)) > MOST_NUMBERS:
            raise ValueError(
                f"posterior={self.posterior!r} at latent_dim={self.latent_dim} takes {width:,} numbers an image, more "
                f"than {MOST_NUMBERS:,}; lower latent_dim"
            )
        return self

    @model_validator(mode="after")
    def _pixels_of_the_likelihood(self) -> Self:
        if self.binarise != "no" and LIKELIHOODS[self.likelihood].of_bytes:
            raise ValueError(
                f"binarise={self.binarise!r} leaves pixels of 2 values, and likelihood={self.likelihood!r} is of 256; "
                "leave binarise out, or take likelihood='bernoulli'"
            )
        return self


class LatentModel(Model):
    """p(x, z) = p(x | z) p(z) with a posterior q(z | x) that each subclass gets in its own way."""

    score_metric = "elbo"
    """Which of ``metrics`` is ``score``."""
    priors: ClassVar[Mapping[str, type[Prior]]] = PRIORS
    """The priors that ``prior`` of its config names."""

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.likelihood: Likelihood = LIKELIHOODS[config.likelihood](config)
        self.prior: Prior = self.priors[config.prior](config)
        self.family: type[Posterior] = POSTERIORS[config.posterior]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.adam(self.parameters())]

    def adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        """Adam on ``parameters``, and by longer steps on the likelihood's own, among them or not."""
        own = list(self.likelihood.parameters())
        groups: list[dict[str, Any]] = [{"params": [one for one in parameters if all(one is not each for each in own)]}]
        groups += [{"params": own, "lr": LIKELIHOOD_LR * self.config.lr}] if own else []
        return torch.optim.Adam(groups, self.config.lr, eps=self.config.adam_eps, fused=True)

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x | z): (..., D) to (..., *params_shape)."""

    @property
    def params_shape(self) -> tuple[int, int, int]:
        """Of the parameters of p(x | z), (P C, H, W), of which the likelihood has P a pixel."""
        channels, height, width = self.spec.shape
        return self.likelihood.per_pixel * channels, height, width

    @property
    def decodes_at_once(self) -> int:
        """Latent vectors that its device best decodes in one call."""
        most = DECODES_AT_ONCE.get(self.device.type, DECODES_AT_ONCE["cpu"])
        return max(1, min(most, most * NUMBERS_DECODED // math.prod(self.spec.shape)))

    @abstractmethod
    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        """q(z | x) as it is trained, differentiable in its parameters; a refinement draws from ``generator``."""

    @property
    def inference(self) -> str:
        """How ``infer`` gets its posterior: encoder, refined, fitted or exact; after a colon its settings, in words."""
        return "encoder"

    def infer(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        """q(z | x) of any images, seen in training or not."""
        with torch.no_grad():
            return self.posterior(batch, generator)

    def infer_roughly(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        """A posterior that is cheap enough for all images of a split, by default ``infer``'s.

        Its ELBO tells how log p(x) differs from image to image, and need not be close to it.
        """
        return self.infer(batch, generator)

    @property
    def steps_to_infer(self) -> int:
        """Gradient steps on an image's posterior in ``infer``, of about three decodes each; none for an encoder."""
        return 0

    def stored_posterior(self, batch: Batch) -> Posterior | None:
        """The posteriors that training left for these very images; None where there is no such table."""
        return None

    @property
    def layers(self) -> nn.Sequential | None:
        """The layers from z (B, D) to the expected image before it is cut to [0, 1]; None where they are no chain."""
        return None

    def exact_log_px(self, x: Tensor) -> Tensor | None:
        """log p(x), (B, C, H, W) to (B,), where it has a closed form, else None."""
        return None

    @property
    def requirements(self) -> tuple[str, ...]:
        return tuple(sorted({*self.prior.requirements, *self.family.requirements}))

    @property
    def observation_model(self) -> str:
        # Of black and white pixels the likelihood's own draws change nothing.
        pixels = BINARISED.get(self.config.binarise, self.likelihood.pixels)
        return f"{self.likelihood.description}, {pixels}"

    @property
    def axes(self) -> dict[str, str]:
        inference = self.inference.partition(":")[0]
        return {"prior": self.config.prior, "posterior": self.config.posterior, "inference": inference}

    def observe(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        return batch.with_x(self.likelihood.observe(batch.x, generator))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): (B, C, H, W) and (S, B, D) to (S, B)."""
        return self.likelihood.log_prob(x, self.decode(z)) + self.prior.log_prob(z)

    def terms(self, batch: Batch, samples: int = 1, generator: torch.Generator | None = None) -> Terms:
        q = self.posterior(batch, generator)
        return self.terms_at(batch, q, q.sample(samples, generator))

    def terms_at(self, batch: Batch, q: Posterior, z: Tensor) -> Terms:
        """The log-densities of a batch at samples z of q, (S, B, D)."""
        params = self.decode(z)
        error = (self.likelihood.mean(params.detach()) - batch.x).square().mean(PIXELS).mean(0)
        log_px_z, log_pz, log_qz = self.likelihood.log_prob(batch.x, params), self.prior.log_prob(z), q.log_prob(z)
        # Not by q.kl, which would take the two densities again.
        kl = (log_qz - log_pz).mean(0) if (exact := self.prior.kl(q)) is None else exact
        return Terms(log_px_z, log_pz, log_qz, kl, {"mse": error})

    def bound(
        self,
        x: Tensor,
        q: Posterior,
        samples: int = 1,
        generator: torch.Generator | None = None,
        kl_weight: float = 1.0,
    ) -> Tensor:
        """The ELBO of images (B, C, H, W) under q, its KL term weighted, (B,), and nothing beside it."""
        z = q.sample(samples, generator)
        return self.likelihood.log_prob(x, self.decode(z)).mean(0) - kl_weight * q.kl(self.prior, z)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        learned = {name: value.expand_as(terms.kl) for name, value in self.likelihood.learned().items()}
        return {"elbo": elbo(terms), **terms.also, "kl": terms.kl, **learned}

    def expected(self, z: Tensor) -> Tensor:
        """The expected images at latent vectors, (..., D) to (..., C, H, W), in [0, 1]."""
        with torch.no_grad():
            return self.likelihood.mean(self.decode(z)).clamp(0, 1)

    def reconstruct(self, q: Posterior) -> Tensor:
        """The expected image at the mean of q, (B, C, H, W)."""
        return self.expected(q.mean)

    def sample(self, count: int, seed: int) -> Tensor:
        """Expected images at ``count`` draws from the prior, (count, C, H, W); equal seeds give equal draws."""
        return self.expected(self.prior.sample((count,), torch.Generator().manual_seed(seed)))
