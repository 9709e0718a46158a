"""pythae's get_nll beside elbolab's estimate of log p(x), image by image, of two VAEs that pythae trains on digits.

    pip install 'elbolab[pythae]'
    OMP_NUM_THREADS=1 python benchmarks/pythae_nll.py

Prints tables in Markdown, after about two minutes on one core. get_nll returns the mean over the images that it
gets, so that it is called with one image at a time. Every figure has three seeds.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import elbolab
from elbolab.config.schema import Config, LikelihoodConfig
from elbolab.data.batches import Batch, Data
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.models.latent import LatentConfig, LatentModel
from elbolab.models.likelihoods.gaussian import Gaussian

SIZES: dict[str, Any] = {"train_size": 2000, "val_size": 500, "test_size": 500}
EPOCHS, LATENT_DIM, IMAGES, SEEDS = 20, 16, 10, 3
# n_samples and batch_size of get_nll.
SETTINGS = ((1, 100), (100, 100), (1000, 100), (2000, 2000))
# Seconds an image, so that only one of the tables has it.
LARGE = (100_000, 2000)
COUNTED = ((1, 100), (50, 100), (150, 100), (1050, 100), (2000, 2000))


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
        gaussian = elbolab.load_for(Config(**SIZES))
        model, saved = train(gaussian, "mse")
        sigma = round(root_mean_square(model, gaussian.val.batch(torch.arange(500)).x), 1)
        print(f'\nreconstruction_loss="mse". Of val images the root mean square residual is about {sigma}.\n')
        table(
            model,
            saved,
            gaussian,
            SETTINGS,
            {"likelihood": "gaussian", "sigma": 1.0},
            {"likelihood": "gaussian", "sigma": sigma},
        )
        mean = gaussian.train.batch(torch.arange(len(gaussian.train))).x.mean(0)
        x = gaussian.test.batch(torch.arange(len(gaussian.test))).x
        print()
        for value in (1.0, sigma):
            likelihood = Gaussian(LatentConfig(sigma=value))
            constant = likelihood.log_prob(x, mean.expand_as(x)).mean().item()
            best = likelihood.log_prob(x, x).mean().item()
            print(f"sigma={value:g}: the mean training image has {constant:.1f} nats, the image itself {best:.1f}.")
        print()
        counts(model, gaussian.test.batch(torch.arange(1)).x)
        binary = elbolab.load_for(Config(**SIZES, binarise="half"))
        model, saved = train(binary, "bce")
        print('\nreconstruction_loss="bce", pixels binarised at a half.\n')
        table(model, saved, binary, [*SETTINGS, LARGE], {"likelihood": "bernoulli", "binarise": "half"})


def train(data: Data, loss: Literal["mse", "bce"]) -> tuple[Any, str]:
    """A VAE of pythae's own nets and trainer, at its epoch of best validation loss, and the folder that it is in."""
    from pythae.models import VAE, AutoModel, VAEConfig
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    torch.manual_seed(0)
    model = VAE(VAEConfig(input_dim=data.spec.shape, latent_dim=LATENT_DIM, reconstruction_loss=loss))
    config = BaseTrainerConfig(output_dir=loss, num_epochs=EPOCHS, learning_rate=1e-3, no_cuda=True)
    images, held_out = (split.batch(torch.arange(len(split))).x for split in (data.train, data.val))
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        TrainingPipeline(model=model, training_config=config)(train_data=images, eval_data=held_out)
    saved = str(next(Path(loss).glob("*/final_model")))
    return AutoModel.load_from_folder(saved).eval(), saved


@torch.no_grad()
def root_mean_square(model: Any, x: Tensor) -> float:
    """The residual of a pixel of images (B, C, H, W), decoded from the means of their posteriors."""
    return (model.decoder(model.encoder(x).embedding).reconstruction - x).square().mean().sqrt().item()


def table(model: Any, saved: str, data: Data, settings: Sequence[tuple[int, int]], *declared: dict[str, Any]) -> None:
    """Print what both give of the first test images: mean and range over seeds, and of elbolab the standard error."""
    batch = data.test.batch(torch.arange(IMAGES))
    found, seconds = zip(*[timed(get_nll, model, batch.x, *setting) for setting in settings], strict=True)
    ours, took = zip(*[timed(estimate, adopt(saved, said), batch) for said in declared], strict=True)
    heads = [f"get_nll({count}), batch_size={size}" for count, size in settings]
    heads += [f"elbolab, {' '.join(f'{key}={value}' for key, value in said.items())}" for said in declared]
    print(f"| image | class | {' | '.join(heads)} |\n|---:|---:|{'---:|' * len(heads)}")
    for row in range(IMAGES):
        cells = [mean_and_range(part[:, row]) for part in found]
        cells += [f"{mean_and_range(value[:, row])} ± {error[:, row].mean():.2f}" for value, error in ours]
        print(f"| {batch.index[row]} | {batch.y[row]} | {' | '.join(cells)} |")
    cells = [mean_and_range(part.mean(1)) for part in found]
    # Of a mean of independent estimates.
    errors = [np.sqrt((error**2).sum(1)).mean() / IMAGES for _, error in ours]
    cells += [f"{mean_and_range(value.mean(1))} ± {error:.2f}" for (value, _), error in zip(ours, errors, strict=True)]
    print(f"| mean | | {' | '.join(cells)} |")
    print(f"| seconds an image | | {' | '.join(f'{one / IMAGES / SEEDS:.3f}' for one in (*seconds, *took))} |")


def mean_and_range(values: np.ndarray) -> str:
    """The mean over seeds, and in brackets the largest less the smallest."""
    return f"{values.mean():.2f} ({np.ptp(values):.2f})"


@torch.no_grad()
def get_nll(model: Any, x: Tensor, n_samples: int, batch_size: int) -> np.ndarray:
    """What pythae's get_nll returns of each image, by seed: (SEEDS, B)."""
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        found.append([model.get_nll(image[None], n_samples=n_samples, batch_size=batch_size) for image in x])
    return np.array(found)


def adopt(saved: str, declared: dict[str, Any]) -> LatentModel:
    """The model of a folder, adopted under a declared likelihood."""
    model = elbolab.load_model(elbolab.adopt(saved, **SIZES, **declared))
    assert isinstance(model, LatentModel)
    return model


@torch.no_grad()
def estimate(model: LatentModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) and its standard error by elbolab's defaults, by seed: (SEEDS, B) each."""
    config, q = LikelihoodConfig(), model.infer(batch)
    seeded = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    found = [estimate_log_px(model, batch.x, q, config, generator) for generator in seeded]
    return np.array([one.log_px.numpy() for one in found]), np.array([one.std_err.numpy() for one in found])


def counts(model: Any, x: Tensor) -> None:
    """Print how many latent vectors get_nll decodes for one image."""
    print("| n_samples | batch_size | decoded |\n|---:|---:|---:|")
    for n_samples, batch_size in COUNTED:
        sizes: list[int] = []
        hook = model.decoder.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.append(len(given[0])))
        with torch.no_grad():
            model.get_nll(x, n_samples=n_samples, batch_size=batch_size)
        hook.remove()
        print(f"| {n_samples} | {batch_size} | {sum(sizes)} |")


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds that it takes."""
    started = time.perf_counter()
    return call(*arguments), time.perf_counter() - started


if __name__ == "__main__":
    main()
