"""The variational autoencoder: an encoder amortises the posterior over all images (Kingma & Welling 2014)."""

from torch import Tensor

from elbolab.models.deep import BetaConfig, EncoderModel
from elbolab.objectives import Terms, beta_loss


class VAEConfig(BetaConfig):
    """Nothing beside what every model trained on the beta-weighted ELBO has."""


class VAE(EncoderModel):
    """q(z | x) = N(mean(x), diag(exp(log_var(x)))) with both from one encoder."""

    Config = VAEConfig

    def loss(self, terms: Terms, epochs: float) -> Tensor:
        return beta_loss(terms, self.config.beta_at(epochs))
