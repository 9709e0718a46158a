"""Operations a second of each model's training, and of the best matrix product that is measured between its epochs."""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, report
from elbolab_training import prepared
from torch.utils.flop_counter import FlopCounterMode

from elbolab.training.trainer import Event, train

# Images an epoch, the fewer the longer a model takes for one.
IMAGES = {"vae": 3000, "iwae": 1000, "latent_opt": 2000, "cnn": 3000, "semi_amortized": 500}
BATCHES = (64, 256)
SIZES = (512, 1024, 2048)


def product_rate(precision: torch.dtype) -> float:
    """Operations a second of the product of two square matrices of this type, of the best of ``SIZES``."""
    return max(2 * size**3 / product_seconds(size, precision) for size in SIZES)


def product_seconds(size: int, precision: torch.dtype) -> float:
    left, right = torch.randn(2, size, size, dtype=precision).unbind()
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def share(name: str, batch_size: int, precision: str, given: argparse.Namespace) -> dict[str, Any]:
    """A model's operations an image, images a second, and share of the product rate, medians over its epochs."""
    images = min(given.images, IMAGES[name])
    model, data = prepared(name, given, batch_size=batch_size, train_size=images, precision=precision)
    speeds: list[float] = []
    products: list[float] = []

    def between(event: Event) -> None:
        speeds.append(event.metrics["train/images_per_s"])
        products.append(product_rate(model.precision))

    folder = Path(f"{name}-{batch_size}-{precision}")
    folder.mkdir()
    train(model, data, between, folder)
    batch = data.train.batch(torch.arange(batch_size))
    with FlopCounterMode(display=False) as counter:
        model.loss(model.terms(batch, model.train_samples), given.epochs).backward()
    flops = counter.get_total_flops() / batch_size * model.steps_per_visit
    pairs = list(zip(speeds, products, strict=True))[1:]
    return {
        "precision": str(model.precision).removeprefix("torch."),
        "flops": flops,
        "images_per_s": statistics.median(speed for speed, _ in pairs),
        "product_flops_per_s": statistics.median(product for _, product in pairs),
        "share": statistics.median(flops * speed / product for speed, product in pairs),
    }


def main() -> None:
    given = arguments()
    cases = [(name, batch, precision) for name in IMAGES for batch in BATCHES for precision in ("auto", "float32")]
    report(shares=[{"model": case[0], "batch": case[1], **share(*case, given)} for case in cases])


if __name__ == "__main__":
    main()
