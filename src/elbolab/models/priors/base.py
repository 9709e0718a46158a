"""The contract of a prior p(z)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from elbolab.data.batches import DataSpec
from elbolab.models.posteriors import Posterior

T = TypeVar("T")


class Encoder(Protocol):
    """What a prior may take of a model with an encoder."""

    spec: DataSpec

    @property
    def encoder(self) -> Any:
        """The net."""
        ...

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) of images (B, C, H, W), without any refinement."""
        ...


class Prior(nn.Module, ABC):
    """A distribution of z (D,), the same for all images; its parameters are trained with the decoder's.

    It is made from the config of its model, of which it reads ``latent_dim`` and what fields it needs beside.
    """

    needs_encoder: ClassVar[bool] = False
    """Whether it is made of what an encoder gives, so that models without one cannot have it."""
    requirements: ClassVar[tuple[str, ...]] = ()
    """Packages that it needs beside those of every model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._remembered: tuple[Any, Any] = None, None
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

    def attach(self, model: Encoder) -> None:
        """Take what it needs of its model; called once the encoder is made, and of models with an encoder alone."""

    def begin(self, images: Tensor) -> None:
        """Begin at the training images, uint8 (N, C, H, W); called before a training of a model with an encoder."""

    def train(self, mode: bool = True) -> Self:
        # A fused step of Adam leaves no trace in the count of changes.
        self._remembered = None, None
        return super().train(mode)

    def remembered(self, make: Callable[[], T], *others: Tensor) -> T:
        """What ``make`` gives of the prior's parameters and of ``others``, made anew when one of these has changed.

        In training mode it is made at every call; otherwise it has no gradients, and is made anew after training too.
        """
        if self.training:
            return make()
        # In place of its numbers the count of changes to them, which is private but what autograd goes by.
        at = [(id(value), value._version, value.device) for value in chain(self.parameters(), others)]
        if self._remembered[0] != at:
            with torch.no_grad():
                self._remembered = at, make()
        return self._remembered[1]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draws (*shape, D) of N(0, I), made where ``generator`` is."""
        device = self.zero.device if generator is None else generator.device
        noise = torch.randn((*shape, self.latent_dim), generator=generator, device=device, dtype=self.zero.dtype)
        return noise.to(self.zero.device)
