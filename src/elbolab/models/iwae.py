"""The importance-weighted autoencoder: the encoder of a vae with K samples in the bound (Burda et al. 2016)."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from elbolab.config.ranges import Choices, IntRange
from elbolab.data.batches import Batch
from elbolab.models.neural import EncoderConfig, EncoderModel
from elbolab.models.objectives import Terms, iw_bound
from elbolab.models.posteriors import Posterior


class IWAEConfig(EncoderConfig):
    """The bound and the estimator of its gradient."""

    iw_samples: Annotated[int, Field(gt=0), IntRange(1, 50, log=True)] = 5
    """Importance samples K in the bound, each decoded at every step; 1 is the ELBO with its KL from that sample."""
    gradient: Annotated[Literal["reparameterised", "dreg"], Choices(["reparameterised", "dreg"])] = "reparameterised"
    """Encoder's gradient of the bound: reparameterised, or doubly so, which keeps its signal as K grows."""


class IWAE(EncoderModel):
    """Maximises log 1/K sum_k p(x, z_k) / q(z_k | x) with z_k drawn from an encoder's q (Burda et al. 2016, eq. 8).

    With normalised weights v_k the reparameterised gradient is E[sum_k v_k d log w_k] (eq. 14). With gradient=dreg that
    of the encoder's phi is E[sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)], of the same expectation (Tucker et al.
    2019, eq. 8), and the decoder's is left as it is. With K = 1 the KL is its one-sample estimate, no closed form.
    """

    Config = IWAEConfig
    score_metric = "iw_bound"

    @property
    def train_samples(self) -> int:
        return self.config.iw_samples

    @property
    def stacks(self) -> bool:
        return self.config.gradient != "dreg"  # which changes a gradient on its way

    def terms_at(self, batch: Batch, q: Posterior, z: Tensor) -> Terms:
        terms = super().terms_at(batch, q, z)
        if self.config.gradient == "dreg" and z.requires_grad:
            # The encoder moves the weights through z alone, whose gradient has one factor v_k from the bound.
            terms = replace(terms, log_qz=q.detach().log_prob(z))
            weights = terms.log_w.detach().softmax(0)[..., None]
            z.register_hook(lambda gradient: gradient * weights)
        return terms

    def loss(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        return super().loss(terms, kl_weight) if self.starts else -iw_bound(terms).mean()

    def score(self, terms: Terms) -> Tensor:
        return iw_bound(terms)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return {**super().metrics(terms), "iw_bound": iw_bound(terms)}
