"""A mixture of Gaussians as the prior, learned with the decoder."""

from typing import Any

import torch
from torch import Tensor, nn

from elbolab.models.posteriors import LOG_2PI
from elbolab.models.priors.base import Prior

# Components that begin alike would stay alike.
START_SPREAD = 0.1


class Mixture(Prior):
    """sum_k w_k N(m_k, diag(v_k)) with ``prior_components`` components (the MoG prior of Tomczak & Welling 2018).

    Weights, means and variances are free parameters; they begin near N(0, I).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = (config.prior_components, self.latent_dim)
        self.logits = nn.Parameter(torch.zeros(shape[0]))
        self.means = nn.Parameter(START_SPREAD * torch.randn(shape))
        self.log_vars = nn.Parameter(torch.zeros(shape))

    def log_prob(self, z: Tensor) -> Tensor:
        return self._log_joint(z).logsumexp(-1)

    def _log_joint(self, z: Tensor) -> Tensor:
        """log w_k N(z; m_k, diag(v_k)) of each component, (..., D) to (..., K)."""
        distance = ((z[..., None, :] - self.means).square() * (-self.log_vars).exp() + self.log_vars).sum(-1)
        densities = -0.5 * (distance + z.shape[-1] * LOG_2PI)
        return self.logits.log_softmax(-1) + densities

    def precision(self, z: Tensor) -> Tensor:
        """That of the component which z most likely comes from."""
        return (-self.log_vars).exp()[self._log_joint(z).argmax(-1)]

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        noise = self.noise(shape, generator)
        weights = self.logits.softmax(-1).to(self.zero.device if generator is None else generator.device)
        count = noise[..., 0].numel()
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator).view(shape)
        chosen = chosen.to(self.zero.device)
        return self.means[chosen] + (0.5 * self.log_vars[chosen]).exp() * noise

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        weights = self.logits.softmax(-1)
        mean = weights @ self.means
        return mean, weights @ (self.log_vars.exp() + self.means.square()) - mean.square()
