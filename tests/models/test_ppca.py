"""The PPCA of large images: as good as that of all eigenvectors, at a cost by the fewer of images and pixels."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elbolab.data.splits import Data, DataSpec, Split, load_data
from elbolab.models import MODELS
from elbolab.models.ppca import FEW_PIXELS, PPCA, PPCAConfig, fit_ppca
from elbolab.support import counters
from elbolab.training.trainer import train


def photographs(count: int, side: int, seed: int = 0) -> Tensor:
    """Images uint8 (N, 3, side, side) with the spectrum of natural ones: digits of any size and colour, and noise."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_data("mnist5k", Path(), train_size=count, val_size=10, test_size=10, split_seed=seed).train.images
    large = F.interpolate(digits.float(), (side, side), mode="bilinear")
    tint = torch.rand(count, 3, 1, 1, generator=generator)
    noise = 20 * torch.randn(count, 3, side, side, generator=generator)
    return (large * tint + noise).clamp(0, 255).byte()


def log_px(x: Tensor, fitted: tuple[Tensor, Tensor, float]) -> float:
    """The exact mean log p(x) of images uint8 (N, 3, H, W) under a mean, loadings and sigma."""
    mean, loadings, sigma = fitted
    spec = DataSpec((x.shape[1], x.shape[2], x.shape[3]), 10, len(x), 1, "")
    model = PPCA(PPCAConfig(latent_dim=loadings.shape[1], sigma=sigma), spec)
    model.mean, model.loadings = mean, loadings
    return model.exact_log_px(x / 255).double().mean().item()


def by_all_eigenvectors(x: Tensor, latent_dim: int, sigma: float | None) -> tuple[Tensor, Tensor, float]:
    """Tipping & Bishop 1999, eqs. 7 and 8, of pixels (N, P)."""
    mean = (x.double() / 255).mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((x.double() / 255).T, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    sigma = math.sqrt(values[latent_dim:].mean().clamp(min=1e-6)) if sigma is None else sigma
    loadings = vectors[:, :latent_dim] * (values[:latent_dim] - sigma**2).clamp(min=0).sqrt()
    return mean.float(), loadings.float(), sigma


@pytest.mark.parametrize("count", [40, 1500])
@pytest.mark.parametrize("latent_dim", [2, 100])
@pytest.mark.parametrize("sigma", [0.4, 0.05, None])
def test_large_images_have_the_log_px_of_all_eigenvectors(count: int, latent_dim: int, sigma: float | None):
    x, unseen = photographs(count, 20), photographs(50, 20, seed=1)
    pixels = x.flatten(1)
    assert pixels.shape[1] > FEW_PIXELS
    exact = by_all_eigenvectors(pixels, latent_dim, sigma)
    fitted = fit_ppca(pixels, latent_dim, sigma)
    assert fitted[2] == pytest.approx(exact[2], rel=1e-6)
    for images in (x, unseen):
        assert log_px(images, fitted) == pytest.approx(log_px(images, exact), abs=1e-3, rel=1e-6)
    # The eigenvectors too, up to their sign: what the covariance of p(x) is made of.
    sizes = fitted[1].square().sum(0)
    torch.testing.assert_close(sizes, exact[1].square().sum(0), atol=1e-4, rtol=1e-4)


def test_equal_images_and_black_ones_have_no_loadings():
    for value in (0, 200):
        mean, loadings, sigma = fit_ppca(torch.full((5, 2000), value, dtype=torch.uint8), 30, None)
        assert mean.unique().tolist() == pytest.approx([value / 255])
        assert loadings.abs().max() < 1e-5
        assert sigma == 1e-3


def test_the_callers_random_numbers_stay_as_they_were():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (fit_ppca(photographs(40, 20).flatten(1), 10, 0.4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1], again[1])


def test_the_cost_is_by_the_fewer_of_images_and_pixels():
    """The covariance of so many pixels takes minutes, whatever the images."""
    x = photographs(400, 64).flatten(1)
    assert x.shape == (400, 12288)
    began = time.process_time()
    _, loadings, _ = fit_ppca(x, 200, 0.4)
    assert time.process_time() - began < 20
    norms = loadings.square().sum(0)
    assert norms[0] > norms[20] > 0


@pytest.fixture
def exits() -> Iterator[None]:
    """SIGTERM ends the process, as it does the command's."""
    usual = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    yield
    signal.signal(signal.SIGTERM, usual)


@pytest.mark.parametrize("name", ["ppca", "latent_opt", "vae"])
def test_a_signal_is_heeded_while_a_pca_is_under_way(name: str, exits: None, tmp_path: Path):
    # Of noise every direction is like every other: the search goes on and on.
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1000, 3, 64, 64), np.uint8))
    labels = torch.arange(len(images)) % 10
    split = Split("train", images, labels, torch.arange(len(images)), "")
    data = Data("noise", split, split, split, DataSpec((3, 64, 64), 10, len(images), len(images), ""))
    model = MODELS[name](MODELS[name].Config(), data.spec)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        train(model, data, lambda _: None, tmp_path)
    timer.join()
    assert ended.value.code == 143
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


def test_a_long_pca_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(counters, "SECONDS_A_LINE", 0)
    fit_ppca(photographs(40, 20).flatten(1), 2, 0.4)
    assert "PCA of the training images: 40 images read in 0 s\n" in capsys.readouterr().err
