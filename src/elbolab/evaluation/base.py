"""What an evaluator is given and gives: a trained model with the images it is judged on, and figures about it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbolab.config.schema import EvaluateConfig
from elbolab.data.batches import Batch, Data, Split
from elbolab.models.base import Model
from elbolab.models.cnn import CNN
from elbolab.models.fitting import fit_anew
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior
from elbolab.support.counters import counted
from elbolab.support.statistics import mean_se

IMAGES_AT_ONCE = 500
# Of the ELBO of every image: more tell no more, and large splits take long.
POPULATION_SAMPLES, POPULATION_DECODES = 10, 100_000


@dataclass
class Results:
    """Metrics by key, tags by key, and artifacts by file name: a table, arrays or plain values."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: "Results") -> "Results":
        return Results(self.metrics | other.metrics, self.tags | other.tags, self.files | other.files)


def mean_metrics(key: str, values: Iterable[float]) -> dict[str, float]:
    """The mean over images and its standard error, which holds the noise of the estimates too; none for one image."""
    return with_error(key, *mean_se(values))


def with_error(key: str, mean: float, error: float) -> dict[str, float]:
    """A mean and its standard error as metrics, the latter where there is one."""
    return {key: mean} if math.isnan(error) else {key: mean, f"{key}_se": error}


def image_rows(batch: Batch, posterior: str, columns: dict[Any, Tensor]) -> pd.DataFrame:
    """A row for each image of a batch: where it stands, the name of its posterior, and values (B,) by column."""
    return pd.DataFrame(
        {"index": batch.index.cpu().numpy(), "split": batch.split, "label": batch.y.cpu().numpy()}
        | {"posterior": posterior}
        | {key: value.double().cpu().numpy() for key, value in columns.items()}
    )


@dataclass(eq=False)
class Evaluation:
    """A trained model, its data, the evaluation's config, the classifier with its run id where there is one, and the
    test images of ``others``, data sets of the same shape by the names that metrics give them.
    """

    model: Model
    data: Data
    config: EvaluateConfig
    classifier: tuple[str, CNN] | None = None
    others: Mapping[str, Split] = field(default_factory=dict)
    estimates: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)
    """What ``elbolab.evaluation.likelihood.image_estimates`` has found, by split."""
    _inferred: dict[str, list[Posterior]] = field(default_factory=dict, init=False, repr=False)
    _fitted: list[Posterior] = field(default_factory=list, init=False, repr=False)
    _populations: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh stream of random numbers on the model's device, the same for every model, another for each purpose.

        An estimate of log p(x) is a lower bound in expectation where q was not fitted with the noise that it draws.
        """
        words = np.random.SeedSequence([self.config.seed, crc32(purpose.encode())]).generate_state(1, np.uint64)
        return torch.Generator(self.model.device).manual_seed(int(words[0]))

    @cached_property
    def mean_image(self) -> Tensor:
        """The mean of the training images, (C, H, W) in [0, 1]."""
        images = self.data.train.images
        total = torch.stack([part.sum(0, dtype=torch.int64) for part in images.split(IMAGES_AT_ONCE)]).sum(0)
        return (total.double() / (255 * len(images))).float().to(self.model.device)

    @torch.no_grad()
    def constant(self, x: Tensor) -> Tensor:
        """log p(x) of images (B, C, H, W) if each were decoded to the mean training image, (B,), in nats."""
        assert isinstance(self.model, LatentModel)
        params = self.model.likelihood.from_mean(self.mean_image)
        return self.model.likelihood.log_prob(x, params.expand(len(x), *params.shape))

    def batches(self, split: str) -> Iterator[Batch]:
        """The evaluated images of a split as the observation model sees them: the same for every model and call."""
        images = self.data.splits[split]
        size = len(images) if self.config.images == "all" else self.config.images
        generator = self.generator(f"{split} images")
        for rows in images.stratified(size, self.config.seed).split(IMAGES_AT_ONCE):
            yield self.model.observe(images.batch(rows), generator)

    def inferred(self, split: str) -> list[Posterior]:
        """The posterior of every batch of ``batches(split)``, by the model's protocol for images it has no row for."""
        assert isinstance(self.model, LatentModel)
        # A free posterior costs minutes, and every evaluator asks for it.
        if split not in self._inferred:
            generator = self.generator(f"{split} posteriors")
            self._inferred[split] = [self.model.infer(batch, generator).detach() for batch in self.batches(split)]
        return self._inferred[split]

    def fitted(self, split: str) -> list[Posterior]:
        """Posteriors of ``batches(split)`` fitted to the decoder from nothing, as by default ``latent_opt`` does it.

        They say what the decoder of a model with an encoder is worth without it: of test images, and none of a model
        that fits its own or has the exact ones.
        """
        assert isinstance(self.model, LatentModel)
        if split != "test" or self.model.axes["inference"] not in ("encoder", "refined"):
            return []
        if not self._fitted:
            generator = self.generator("fitted posteriors")
            self._fitted = [fit_anew(self.model, batch.x, generator=generator) for batch in self.batches(split)]
        return self._fitted

    def population(self, split: str) -> pd.DataFrame:
        """Every image of a split, by index: its ``label``, the ``elbo`` of a posterior that is cheap for all, in nats,
        and ``log_px_constant``.

        Of a model with a closed form the first is log p(x). By it the mean over the evaluated images becomes that over
        the split (``elbolab.evaluation.split_means``).
        """
        assert isinstance(self.model, LatentModel)
        if split not in self._populations:
            images, generator = self.data.splits[split], self.generator(f"{split} population")
            samples = max(1, min(POPULATION_SAMPLES, POPULATION_DECODES // len(images)))
            rows = []
            with counted(f"{split} ELBO of all images", len(images)) as done:
                for batch in images.batches(IMAGES_AT_ONCE):
                    batch = self.model.observe(batch, generator)
                    if (elbo := self.model.exact_log_px(batch.x)) is None:
                        q = self.model.infer_roughly(batch, generator).detach()
                        # Of all images alike, so that a regression on it heeds no rounding.
                        with torch.no_grad(), self.model.as_in_training():
                            elbo = self.model.bound(batch.x, q, samples, generator)
                    rows.append(image_rows(batch, "rough", {"elbo": elbo, "log_px_constant": self.constant(batch.x)}))
                    done(len(batch))
            self._populations[split] = pd.concat(rows, ignore_index=True).drop(columns="posterior").set_index("index")
        return self._populations[split]

    def with_inferred(self, split: str) -> Iterator[tuple[Batch, Posterior]]:
        """Every batch of ``batches(split)`` with its inferred posteriors."""
        return zip(self.batches(split), self.inferred(split), strict=True)

    def with_posteriors(self, split: str, at_once: int) -> Iterator[tuple[Batch, dict[str, Posterior]]]:
        """The same, at most ``at_once`` images at a time, their posteriors by name.

        They are the inferred ones, by the word for the model's inference, and then, where there are any, as ``table``
        those that training left for these images, and as ``fitted`` those of ``fitted``.
        """
        assert isinstance(self.model, LatentModel)
        fitted = self.fitted(split)
        for place, (batch, q) in enumerate(self.with_inferred(split)):
            posteriors = {self.model.axes["inference"]: q}
            if (stored := self.model.stored_posterior(batch)) is not None:
                posteriors["table"] = stored
            if fitted:
                posteriors["fitted"] = fitted[place]
            for rows in torch.arange(len(batch), device=batch.x.device).split(at_once):
                yield batch[rows], {name: each[rows] for name, each in posteriors.items()}
