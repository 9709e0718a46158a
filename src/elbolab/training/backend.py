"""What a training runs on: a step, and what processes that train together owe each other; here one process alone."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from elbolab.data.batches import Batch, Data
from elbolab.models.base import Model
from elbolab.models.objectives import Terms
from elbolab.support.errors import UserError


class Objective(nn.Module):
    """The terms, (S, B) each, and the loss, a scalar, of a batch of B images as one forward pass."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, kl_weight: float | Tensor) -> tuple[Terms, Tensor]:
        terms = self.model.terms(batch, self.model.train_samples)
        return terms, self.model.loss(terms, kl_weight)


@dataclass
class Step:
    """One step downhill on a batch of B images, maybe none; ``take`` takes it, and leaves ``terms`` and ``loss``.

    ``kl_weight`` is that of ``Model.kl_weight``; ``checked`` names the step where its loss is looked at before the
    weights change; ``clip`` is that of the config.
    """

    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batch: Batch
    kl_weight: float
    checked: str | None
    clip: float
    terms: Terms = field(init=False)
    loss: Tensor = field(init=False)

    def take(self) -> None:
        """Compute the terms and the loss, and move the weights; raises UserError as ``refuse_no_number`` does."""
        self.terms, self.loss = self.objective(self.batch, self.kl_weight)
        self.refuse_no_number()
        if self.optimizers:
            self.loss.backward()
        self.move()

    def refuse_no_number(self) -> None:
        """Raise UserError where the loss is looked at and is not finite."""
        # The mean over a share without images is not a number.
        if not self.checked or not len(self.batch) or math.isfinite(value := self.loss.item()):
            return
        terms = self.terms
        named = {"log p(x|z)": terms.log_px_z, "log p(z)": terms.log_pz, "log q(z|x)": terms.log_qz, "KL": terms.kl}
        wrong = [name for name, each in named.items() if not each.isfinite().all()]
        reason = f", because of {', '.join(wrong)}" if wrong else ""
        rate = self.optimizers[0].param_groups[0]["lr"] if self.optimizers else 0
        raise UserError(f"the loss is {value} at {self.checked}{reason}; lower lr, which is {rate:g} there")

    def move(self) -> None:
        """Move the weights along the gradients that they have, clipped."""
        if self.clip:
            groups = [group["params"] for optimizer in self.optimizers for group in optimizer.param_groups]
            # A row's gradient is one image's own, and each of several processes has other rows.
            dense = [weight for group in groups for weight in group if not _is_sparse(weight)]
            nn.utils.clip_grad_norm_(dense, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def _is_sparse(weight: Tensor) -> bool:
    return weight.grad is not None and weight.grad.is_sparse


class Backend:
    """One process that takes each step at once. Others say what differs; of several processes each has its own."""

    rank = 0
    """The number of this process, from 0; process 0 is the one that tracks and speaks."""
    processes = 1
    """How many processes train together."""

    def begin(self, model: Model, data: Data) -> nn.Module:
        """The objective of a model that has been prepared for ``data`` and is in training mode."""
        return Objective(model)

    def step(self, step: Step) -> None:
        """Have a step taken, by whomever; raises UserError as ``Step.take`` does."""
        step.take()

    def share(self, model: Model, batch: Batch) -> AbstractContextManager[Batch]:
        """This process's images of a batch; while it lasts, random numbers and gradients are the whole batch's."""
        return nullcontext(batch)

    def gather(self, values: Tensor, model: Model, batch: Batch) -> Tensor:
        """The values (B, ...) of a batch of B images, of which each process has those of its share: in process 0."""
        return values

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes of a tensor of any one shape, the same on each."""
        return value

    def weights(self, model: Model) -> dict[str, Tensor]:
        """The whole ``state_dict`` of a model, in process 0."""
        return model.state_dict()

    def compiles(self, model: Model, data: Data) -> bool:
        """Whether ``begin`` compiles the objective."""
        return False

    def one_first(self) -> AbstractContextManager[None]:
        """One process of each machine goes first and the others follow, for files that may have to be downloaded."""
        return nullcontext()

    def run(self, work: Callable[[], object]) -> None:
        """Do ``work``, in which processes wait for each other; raises UserError with another's reason to fail."""
        work()
