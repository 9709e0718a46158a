"""The contract of a family of posteriors q(z | x)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

DENSITIES_AT_ONCE = 2**22


class Density(Protocol):
    """What a KL divergence is taken to: log p(z) of z (..., D), and KL(q || p), (B,), where it has a closed form."""

    def log_prob(self, z: Tensor) -> Tensor: ...

    def kl(self, q: "Posterior") -> Tensor | None: ...


class Posterior(ABC):
    """A distribution of z (D,) for each of B images: a frozen dataclass of unconstrained tensors (B, ...).

    Whatever optimises a posterior may move its tensors freely. Fields that are no tensors, such as a net, are shared by
    all images.
    """

    mean: Tensor
    """E_q[z], (B, D)."""
    requirements: ClassVar[tuple[str, ...]] = ()
    """Packages that it needs beside those of every model."""

    @staticmethod
    @abstractmethod
    def width(latent_dim: int) -> int:
        """Numbers W that describe the posterior of one image."""

    @classmethod
    @abstractmethod
    def from_rows(cls, rows: Tensor) -> Self:
        """The posteriors that rows (B, W) describe, as a network or a table gives them."""

    @classmethod
    @abstractmethod
    def around(cls, mean: Tensor, log_var: Tensor) -> Self:
        """The member with this mean (B, D) and independent dimensions of variance exp(``log_var``), (B, D)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of each dimension of z under q, (B, D)."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the distribution by name, as a served model answers them, each (B, ...)."""

    @abstractmethod
    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised samples (S, B, D)."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), (S, B, D) to (S, B), in nats."""

    def kl_standard_normal(self) -> Tensor | None:
        """KL(q || N(0, I)), (B,), in nats; None where it has no closed form."""
        return None

    def kl(self, prior: Density, z: Tensor | None = None) -> Tensor:
        """KL(q || prior), (B,), in nats: in closed form where there is one, else the mean over samples z (S, B, D).

        Raises ValueError where it has no closed form and ``z`` is not given.
        """
        if (exact := prior.kl(self)) is not None:
            return exact
        if z is None:
            raise ValueError(
                f"KL of {type(self).__name__} to {type(prior).__name__} has no closed form; give samples z"
            )
        return (self.log_prob(z) - prior.log_prob(z)).mean(0)

    def pairwise_log_prob(self, z: Tensor) -> Tensor:
        """log q_b(z_r) of every z (R, D) under every one of these B posteriors, (R, B), in nats."""
        size = max(1, DENSITIES_AT_ONCE // self.mean.numel())
        parts = [self.log_prob(part[:, None].expand(-1, *self.mean.shape)) for part in z.split(size)]
        return torch.cat(parts)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that make it, in the order of the constructor, (B, ...) each."""
        return tuple(getattr(self, name) for name in self._names)

    @property
    def _names(self) -> list[str]:
        names = [field.name for field in fields(self)]  # pyright: ignore[reportArgumentType]
        return [name for name in names if isinstance(getattr(self, name), Tensor)]

    def with_tensors(self, values: Iterable[Tensor]) -> Self:
        """The posteriors that have these in place of ``tensors``."""
        return replace(self, **dict(zip(self._names, values, strict=True)))  # pyright: ignore[reportArgumentType, reportCallIssue]

    @property
    def rows(self) -> Tensor:
        """What ``from_rows`` makes these posteriors of, (B, W)."""
        return torch.cat([value.flatten(1) for value in self.tensors], -1)

    def like(self, mean: Tensor, log_var: Tensor) -> Self:
        """The member of its own family that ``around`` makes, with whatever it shares among images."""
        return self.around(mean, log_var)

    @classmethod
    def of(cls, q: "Posterior") -> Self:
        """``q`` itself where it is of this family, else the member of equal mean and variances."""
        return q if isinstance(q, cls) else cls.around(q.mean, q.variance.log())

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The posteriors of all images of ``parts``, which are of one family."""
        return parts[0].with_tensors(map(torch.cat, zip(*(part.tensors for part in parts), strict=True)))

    def detach(self) -> Self:
        """The same without gradients."""
        return self.with_tensors(value.detach() for value in self.tensors)

    def double(self) -> Self:
        """The same in double precision."""
        return self.with_tensors(value.double() for value in self.tensors)

    def __getitem__(self, rows: Any) -> Self:
        """The posteriors of these images."""
        return self.with_tensors(value[rows] for value in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])
