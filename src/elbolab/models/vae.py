"""The variational autoencoder: an encoder amortises the posterior over all images (Kingma & Welling 2014)."""

from elbolab.models.neural import BetaConfig, EncoderConfig, EncoderModel


class VAEConfig(BetaConfig, EncoderConfig):
    """What a vae has: the weight of its KL term, and the start of its nets."""


class VAE(EncoderModel):
    """q(z | x) with all its parameters from one encoder, trained on the beta-weighted ELBO."""

    Config = VAEConfig

    def kl_weight(self, epochs: float) -> float:
        return self.config.beta_at(epochs)
