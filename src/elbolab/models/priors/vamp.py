"""The VampPrior: a mixture of the encoder's posteriors of pseudo-inputs."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.models.posteriors import Posterior
from elbolab.models.posteriors.base import DENSITIES_AT_ONCE
from elbolab.models.priors.base import Encoder, Prior

# Of the noise as in the authors' code: equal pseudo-inputs would stay equal.
SPREAD, INSIDE, IMAGES = 0.01, 0.05, 1000


class Vamp(Prior):
    """1/K sum_k q(z | u_k), q the encoder's, with K = ``prior_components`` (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs u_k are images in [0, 1] that are trained with the nets. They begin near the mean training image,
    with black and white some hundredths inside: at the ends of the range they have no gradient.
    """

    needs_encoder = True
    pseudo_inputs: nn.Parameter
    """K images, (K, C, H, W); what is beyond [0, 1] counts as the nearer end."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._components: int = config.prior_components
        self._seed: int = config.seed

    def attach(self, model: Encoder) -> None:
        self.pseudo_inputs = nn.Parameter(torch.full((self._components, *model.spec.shape), 0.5))
        # A method, since a module would become a part of this one and of its checkpoints.
        self._encode = model.encode
        self._encoder_weights = model.encoder.parameters

    def begin(self, images: Tensor) -> None:
        generator = torch.Generator().manual_seed(self._seed)
        some = images[torch.randperm(len(images), generator=generator)[:IMAGES]]
        mean = (some / 255).mean(0).clamp(INSIDE, 1 - INSIDE).to(self.zero.device)
        noise = SPREAD * torch.randn(self.pseudo_inputs.shape, generator=generator).to(self.zero.device)
        with torch.no_grad():
            self.pseudo_inputs.copy_(mean + noise)

    @property
    def posteriors(self) -> Posterior:
        """q(z | u_k) of the K pseudo-inputs."""
        return self.remembered(lambda: self._encode(self.pseudo_inputs.clamp(0, 1)), *self._encoder_weights())

    def log_prob(self, z: Tensor) -> Tensor:
        q, rows = self.posteriors, z.reshape(-1, self.latent_dim)
        size = max(1, DENSITIES_AT_ONCE // q.mean.numel())
        parts = [_pairwise(q, part).logsumexp(1) for part in rows.split(size)]
        return torch.cat(parts).reshape(z.shape[:-1]) - math.log(len(q))

    @torch.no_grad()
    def precision(self, z: Tensor) -> Tensor:
        """That of the component which z most likely comes from."""
        q = self.posteriors
        return (1 / q.variance)[_pairwise(q, z.reshape(-1, self.latent_dim)).argmax(1)].reshape(z.shape)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        q, device = self.posteriors, self.zero.device if generator is None else generator.device
        chosen = torch.randint(len(q), (math.prod(shape),), generator=generator, device=device)
        drawn = q.with_tensors(value.to(device)[chosen] for value in q.tensors).sample(1, generator)
        return drawn.reshape(*shape, self.latent_dim).to(self.zero.device)

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        q = self.posteriors
        mean = q.mean.mean(0)
        return mean, (q.variance + q.mean.square()).mean(0) - mean.square()


def _pairwise(q: Posterior, z: Tensor) -> Tensor:
    """log q_k(z_r), (R, D) to (R, K): by differences, since products of matrices lose what is close to a mean."""
    return q.log_prob(z[:, None].expand(-1, *q.mean.shape))
