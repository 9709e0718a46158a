"""The variational autoencoder: an encoder amortises the posterior over all images (Kingma & Welling 2014)."""

from elbolab.models.neural import BetaConfig, EncoderModel


class VAE(EncoderModel):
    """q(z | x) with all its parameters from one encoder, trained on the beta-weighted ELBO."""

    Config = BetaConfig

    def kl_weight(self, epochs: float) -> float:
        return self.config.beta_at(epochs)
