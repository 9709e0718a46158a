"""The contract of every model: what the trainer asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elbolab.config.schema import Config
from elbolab.data.batches import Batch, Data, DataSpec
from elbolab.models.objectives import Terms, beta_loss, elbo
from elbolab.support.user_code import Source, is_own, of_class

# Asked once, since a compiled step cannot ask.
_CPU = torch.cpu.get_capabilities()
FAST_BFLOAT16 = bool(_CPU.get("avx512_bf16") or _CPU.get("amx_bf16"))
"""Whether this CPU multiplies matrices of bfloat16 faster than those of float32; others imitate it, slowly."""


class Model(nn.Module, ABC):
    """What the trainer needs: ``Model(config, spec)``, the terms of a batch, a loss and the optimisers."""

    Config: ClassVar[type[Config]]

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self._as_in_training = False
        self.stage = 0
        """Of its training; steps at one stage are of one loss."""

    @cached_property
    def code(self) -> dict[str, Source]:
        """The user's own code, by the field that names it, of its class as ``model``, which travels with the weights.

        As it is when it is first asked for. Raises UserError where it cannot be read.
        """
        return self.code_of(self.config)

    @classmethod
    def code_of(cls, config: Any) -> dict[str, Source]:
        """What ``code`` of a model of this config is; raises UserError where it cannot be read."""
        return {} if is_own(cls) else {"model": of_class(cls)}

    @classmethod
    def params_of(cls, config: Any) -> dict[str, str]:
        """What of its config a run has as parameters."""
        return config.params()

    @property
    def requirements(self) -> tuple[str, ...]:
        """Packages that a registered version of it needs beside those of every model."""
        return ()

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def precision(self) -> torch.dtype:
        """The type of the matrix products of ``compute`` while the model trains, on the device that it trains on."""
        # No cached property, whose lock would cut a compiled step in two.
        wanted = self.config.precision
        if wanted == "auto":
            wanted = "bfloat16" if self.device.type == "cpu" and FAST_BFLOAT16 else "float32"
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32

    def compute(self, net: nn.Module, x: Tensor) -> Tensor:
        """What ``net`` gives of ``x``, in the type of ``x``.

        While the model trains, or within ``as_in_training``, by products of ``precision``.
        """
        reduced = (self.training or self._as_in_training) and self.precision == torch.bfloat16
        with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
            return net(x).to(x.dtype)

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """Compute in the precision of training: faster, and good enough for what is corrected afterwards."""
        self._as_in_training = True
        try:
            yield
        finally:
            self._as_in_training = False

    @property
    @abstractmethod
    def observation_model(self) -> str:
        """What the likelihood is of, in words; only models of equal observation models can be compared."""

    @property
    def axes(self) -> dict[str, str]:
        """The choices that its run carries as tags, by axis."""
        return {}

    @abstractmethod
    def terms(self, batch: Batch, samples: int = 1, generator: torch.Generator | None = None) -> Terms:
        """The log-densities of a batch, (S, B) each."""

    @abstractmethod
    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        """What is logged of a batch beside its loss, each (B,)."""

    @property
    def sources(self) -> dict[str, str]:
        """The runs whose trained models ``start_from`` must get before ``prepare``, by the field that names them."""
        return {}

    def start_from(self, field: str, source: "Model") -> None:
        """Take what the start needs from another trained model; raises UserError where the two do not fit."""

    def prepare(self, data: Data) -> None:
        """Everything that a model takes from its training data before the first step."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch, from 1, and where a training resumes within one."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers of the free parameters, their rates those of the first step; none for a closed form."""
        return [torch.optim.Adam(self.parameters(), self.config.lr, eps=self.config.adam_eps, fused=True)]

    def observe(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The batch as the observation model sees it."""
        return batch

    @property
    def sharded(self) -> dict[str, int]:
        """Tables with a row an image, which several processes share out: parameters by name, and the rows of each."""
        return {}

    def keep_rows(self, owned: Callable[[int], slice]) -> None:
        """Keep of each table of ``sharded`` the rows ``owned(rows)`` alone; called after ``prepare``, if at all."""

    def place(self, batch: Batch) -> tuple[Tensor, int]:
        """Where each image stands among those that several processes share out, (B,), and how many these are.

        These are the batch itself, or the rows of the table that has its images'.
        """
        return torch.arange(len(batch), device=batch.index.device), len(batch)

    @property
    def stacks(self) -> bool:
        """Whether ``torch.vmap`` can compute a step of several such models as one."""
        return not self.sharded

    @property
    def compiles(self) -> bool:
        """Whether a compiled step is faster on a CPU than one as it comes."""
        return False

    @property
    def steps_per_visit(self) -> int:
        """Optimiser steps on a batch each time that its turn comes."""
        return 1

    def kl_weight(self, epochs: float) -> float:
        """Weight of the KL term in the loss, ``epochs`` into the training."""
        return 1.0

    def refresh(self, batch: Batch, kl_weight: float) -> None:
        """Bring what the model keeps of validation images up to date."""

    @property
    def train_samples(self) -> int:
        """Latent samples an image at each training step and in its validation."""
        return 1

    def loss(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The training loss, a scalar, at a weight of the KL term that only some models heed."""
        return beta_loss(terms, kl_weight)

    def score(self, terms: Terms) -> Tensor:
        """What makes one epoch better than another, (B,): on the validation images the highest mean is kept."""
        return elbo(terms)
