"""The variational autoencoder: an encoder amortises the posterior over all images (Kingma & Welling 2014)."""

from typing import Any

from elbolab.data import Batch, DataSpec
from elbolab.models.latent import DeepLatentConfig, DeepLatentModel, DiagonalGaussian
from elbolab.nets import conv_encoder


class VAEConfig(DeepLatentConfig):
    """Nothing beside what every deep latent-variable model has."""


class VAE(DeepLatentModel):
    """q(z | x) = N(mean(x), diag(exp(log_var(x)))) with both from one convolutional encoder."""

    Config = VAEConfig

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = conv_encoder(spec.shape, 2 * config.latent_dim)

    def posterior(self, batch: Batch) -> DiagonalGaussian:
        return DiagonalGaussian(*self.encoder(batch.x).chunk(2, -1))
