"""elbolab's own trainer with its default settings, at constant rates and without a warm-up as the peers train."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import IW_SAMPLES, LR, SIGMA, arguments, report_training

from elbolab.data.splits import Data
from elbolab.experiment.train import prepare
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.support.malloc import tune_memory
from elbolab.training.compiled_steps import CompiledSteps
from elbolab.training.trainer import Event, train

VAL_SIZE = 500


def prepared(name: str, given: argparse.Namespace, **more: Any) -> tuple[Model, Data]:
    """The model ``name`` and its data as the arguments say, with ``more`` fields of its config."""
    kind = MODELS[name].Config
    fields = {
        "dataset": given.dataset,
        "train_size": given.images,
        "val_size": VAL_SIZE,
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "lr": LR,
        "schedule": "constant",
        "seed": given.seed,
        "device": "cpu",
        "precision": given.precision,
        "latent_dim": given.latent_dim,
        "sigma": SIGMA,
        "beta_warmup": 0,
        "pca_epochs": 0,
        "clip": 0.0,
        "iw_samples": IW_SAMPLES,
        **more,
    }
    # As the command does.
    tune_memory()
    config = kind.parse({key: value for key, value in fields.items() if key in kind.model_fields})
    model, data, _ = prepare(name, config)
    return model, data


def measure(
    given: argparse.Namespace, model: Model, data: Data, between: Callable[[], dict[str, float]] = dict
) -> None:
    """Train, and print the speed that the trainer reports, the loss, and the bytes of data and model.

    What ``between`` does after every epoch and finds of the last is printed too.
    """
    events: list[Event] = []
    found: dict[str, float] = {}

    def note(event: Event) -> None:
        events.append(event)
        found.update(between())

    train(model, data, note, Path.cwd(), CompiledSteps())
    metrics = events[-1].metrics
    data_bytes = sum(
        tensor.nbytes for split in data.splits.values() for tensor in (split.images, split.labels, split.index)
    )
    # Weights, gradients and the two moments of Adam.
    model_bytes = 4 * sum(parameter.nbytes for parameter in model.parameters())
    report_training(
        given,
        [len(data.train) / event.metrics["train/images_per_s"] for event in events],
        -metrics["train/elbo"] if "train/elbo" in metrics else metrics["train/loss"],
        data_bytes=data_bytes,
        model_bytes=model_bytes,
        **found,
    )


def main() -> None:
    given = arguments()
    measure(given, *prepared(given.model, given))


if __name__ == "__main__":
    main()
