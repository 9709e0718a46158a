"""A classifier of the size of LeNet: the judge of class preservation."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from elbolab.config.schema import Config, RateSchedule
from elbolab.data.batches import Batch, DataSpec
from elbolab.models.base import Model
from elbolab.models.networks import lenet
from elbolab.models.objectives import Terms
from elbolab.support.errors import UserError


class CNNConfig(Config):
    """A classifier needs fewer passes than a generative model."""

    epochs: Annotated[int, Field(gt=0)] = 10
    """Passes over the training images; by the schedule plateau the most."""
    schedule: RateSchedule = "cosine"
    """How rates fall: to 0 along a half cosine, or as for every other model."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.002
    """By how much the mean of the cross-entropy must fall, in nats an image, for it to be improving."""


class CNN(Model):
    """p(y | x) by a convolutional net: the case S = 1 whose only term is log p(y | x)."""

    Config = CNNConfig

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.classes < 2:
            raise UserError("model=cnn needs images of two classes at least, which labels tell apart; add labels")
        self.net = lenet(spec.shape, spec.classes)

    @property
    def observation_model(self) -> str:
        return "categorical"

    def logits(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to unnormalised log-probabilities of the classes (B, classes)."""
        return self.compute(self.net, x)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activations (B, F) that the last layer sees."""
        return self.compute(self.net[:-1], x)

    def terms(self, batch: Batch, samples: int = 1, generator: torch.Generator | None = None) -> Terms:
        logits = self.logits(batch.x)
        log_py_x = -F.cross_entropy(logits, batch.y, reduction="none")
        zero = torch.zeros_like(log_py_x)
        correct = (logits.argmax(-1) == batch.y).float()
        return Terms(log_py_x[None], zero[None], zero[None], zero, {"accuracy": correct})

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return dict(terms.also)
