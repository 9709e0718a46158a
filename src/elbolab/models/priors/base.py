"""The contract of a prior p(z)."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.models.posteriors import Posterior


class Prior(nn.Module, ABC):
    """A distribution of z (D,), the same for all images; its parameters are trained with the decoder's.

    It is made from the config of its model, of which it reads ``latent_dim`` and what fields it needs beside.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.latent_dim: int = config.latent_dim
        # Where it computes, also without parameters; it is no part of a checkpoint.
        self.register_buffer("zero", torch.zeros(self.latent_dim), persistent=False)
        self.zero: Tensor

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), (..., D) to (...), in nats."""

    @abstractmethod
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draws (*shape, D) without gradients, on the prior's device; ``generator`` may be on another."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each dimension of z, (D,) each."""

    def precision(self, z: Tensor) -> Tensor:
        """How curved log p(z) is along each dimension, about -d^2 log p(z) / d z_d^2, positive; z (..., D), same shape.

        By default 1 over the variance of each dimension.
        """
        return (1 / self.moments()[1]).expand_as(z)

    def kl(self, q: Posterior) -> Tensor | None:
        """KL(q || p), (B,), in nats; None where it has no closed form."""
        return None

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draws (*shape, D) of N(0, I), made where ``generator`` is."""
        device = self.zero.device if generator is None else generator.device
        noise = torch.randn((*shape, self.latent_dim), generator=generator, device=device, dtype=self.zero.dtype)
        return noise.to(self.zero.device)
