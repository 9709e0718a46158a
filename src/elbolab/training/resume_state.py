"""Where a training stands, and all that its next step depends on, as files of which the newest intact one counts."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbolab.data.batches import Batch
from elbolab.models.base import Model
from elbolab.support.errors import UserError
from elbolab.training.checkpoint import read, write

PATTERN = "state-*.safetensors"
# Writing takes at most a hundredth of the time.
LEAST_SECONDS, TIMES_ITS_COST = 1.0, 100
KEPT = 2
# The fields of a position that stand in the header as they are.
NUMBERS = ("epoch", "step", "seconds", "seconds_before", "best", "scores")


class Means:
    """Means over images, kept on the device: reading a number at each step would make the device wait."""

    def __init__(self, count: int = 0, sums: dict[str, Tensor] | None = None) -> None:
        self.count = count
        self.sums = sums or {}

    def add(self, batch: Batch, loss: Tensor, metrics: dict[str, Tensor], score: Tensor) -> None:
        """Add a batch of B images: the loss is their mean, a scalar, and the score and each of the metrics (B,)."""
        self.count += len(batch)
        # The mean over a share without images is not a number.
        summed = loss.detach() * len(batch) if len(batch) else loss.new_zeros(())
        sums = {"loss": summed, "score": score.detach().sum()}
        sums |= {key: value.detach().sum() for key, value in metrics.items()}
        self.sums = {key: value + self.sums[key] if self.sums else value for key, value in sums.items()}

    def metrics(self, split: str, total: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], float]:
        """The means by their keys in ``split``, and that of the score; ``total`` sums a scalar over the processes."""
        count = total(torch.tensor(self.count)).item()
        means = {key: total(value).item() / count for key, value in self.sums.items()}
        score = means.pop("score")
        return {f"{split}/{key}": value for key, value in means.items()}, score


@dataclass
class Position:
    """The epoch, from 1, how many of its steps are done and the seconds that they took, and what they found.

    Of the epochs before it ``scores`` has the validation scores, of which ``best`` is the highest, and
    ``seconds_before`` is what their steps took.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    best: float = -math.inf
    scores: list[float] = field(default_factory=list)
    means: Means = field(default_factory=Means)
    order: Tensor = field(default_factory=lambda: torch.empty(0))
    """State of the generator that shuffles, before it drew the order of this epoch."""


class ResumeState:
    """The states of one training in ``folder``: weights, moments of the optimisers, random numbers, position."""

    def __init__(self, folder: Path, model: Model, optimizers: list[torch.optim.Optimizer]) -> None:
        self._folder = folder
        self._model = model
        self._optimizers = optimizers
        self._saved, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > max(LEAST_SECONDS, TIMES_ITS_COST * self._cost)

    def save(self, at: Position) -> None:
        """Keep the training as it stands ``at`` this position; a model that is not finite is not worth it.

        Raises UserError where it cannot be written.
        """
        began = time.monotonic()
        tensors = {f"model/{key}": value for key, value in self._model.state_dict().items()} | self._moments()
        tensors |= {f"means/{key}": value for key, value in at.means.sums.items()}
        tensors |= {"random/cpu": torch.get_rng_state(), "random/order": at.order}
        if self._model.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        header = {name: getattr(at, name) for name in NUMBERS} | {"count": at.means.count}
        header["config"] = self._model.config.model_dump(mode="json")
        header["rates"] = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
        finite = all(bool(value.isfinite().all()) for key, value in tensors.items() if key.startswith("model/"))
        if finite:
            write(self._folder / PATTERN.replace("*", f"{at.epoch:06}-{at.step:08}"), tensors, header)
            for old in sorted(self._folder.glob(PATTERN))[:-KEPT]:
                old.unlink()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def restore(self) -> Position:
        """Put the model, its optimisers and all random numbers where the newest intact state has them, if there is one.

        Says so on standard error where a newer one is damaged. Raises UserError where it is that of another config.
        """
        found = sorted(self._folder.glob(PATTERN))
        while found:
            try:
                tensors, header = read(found.pop())
            except UserError as error:
                where = "the one before it" if found else "the start"
                print(f"elbolab: {error}; going on from {where}", file=sys.stderr, flush=True)
                continue
            # One of an earlier version lacks some fields.
            config = self._model.config
            if config != type(config).parse(config.model_dump(mode="json") | header["config"]):
                raise UserError(f"{self._folder} holds the state of a training of another config; use another folder")
            return self._put(_within(tensors), header)
        return Position()

    @torch.no_grad()
    def _put(self, parts: dict[str, dict[str, Tensor]], header: dict[str, Any]) -> Position:
        self._model.load_state_dict(parts["model"])
        for place, optimizer in enumerate(self._optimizers):
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in parts.get(f"optimizer{place}", {}).items():
                number, key = name.split("/")
                parameter = parameters[int(number)]
                # The fused step takes it that a moment lies in memory as its parameter does.
                laid = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                moments.setdefault(int(number), {})[key] = laid
            groups = optimizer.state_dict()["param_groups"]
            for group, rate in zip(groups, header["rates"][place], strict=True):
                group["lr"] = rate
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        random = parts["random"]
        torch.set_rng_state(random["cpu"])
        # What was begun on a CPU may go on where there is a GPU.
        if self._model.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])
        sums = {key: value.to(self._model.device) for key, value in parts.get("means", {}).items()}
        means = Means(header["count"], sums)
        # States of 0.1.0 have no scores of the epochs before: those count as endlessly low, so that nothing follows.
        before = {"scores": [-math.inf] * (header["epoch"] - 1), "seconds_before": 0.0}
        numbers = {name: (before | header)[name] for name in NUMBERS}
        return Position(**numbers, means=means, order=random["order"])

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"optimizer{place}/{number}/{key}": value
            for place, optimizer in enumerate(self._optimizers)
            for number, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }


def _within(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts
