"""What an evaluation says of the latent space, against posteriors whose answer is known."""

import math
import sys

import pytest
import torch
from conftest import trained

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data
from elbolab.evaluation import Evaluation
from elbolab.evaluation.representation import active_units, mutual_information, representation
from elbolab.models.posteriors import DiagonalGaussian
from elbolab.models.ppca import PPCA


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_identical_posteriors_tell_nothing_of_the_image():
    q = DiagonalGaussian(torch.tensor([[0.7, -2.0, 0.0]]).expand(40, 3), torch.tensor([[-1.0, 0.3, 0.0]]).expand(40, 3))
    assert mutual_information(q, 5, seeded()) == pytest.approx(0, abs=1e-9)


def test_separate_posteriors_tell_which_image_it_was():
    q = DiagonalGaussian(10.0 * torch.arange(30)[:, None].expand(30, 2), torch.full((30, 2), -4.0))
    assert mutual_information(q, 5, seeded()) == pytest.approx(math.log(30), abs=1e-9)


def test_pairs_of_images_that_share_a_posterior_are_half_told_apart():
    means = torch.arange(15).repeat_interleave(2)[:, None] * 20.0
    assert mutual_information(DiagonalGaussian(means, torch.zeros(30, 1)), 5, seeded()) == pytest.approx(math.log(15))


def test_mutual_information_is_that_of_a_gaussian_channel(monkeypatch: pytest.MonkeyPatch):
    # Means N(0, a) with noise N(0, v) give z ~ N(0, a + v), and 1/2 log((a + v) / v) nats about the mean.
    means = math.sqrt(0.8) * torch.randn(4000, 1, generator=seeded(1))
    q = DiagonalGaussian(means, torch.full((4000, 1), math.log(0.2)))
    information = mutual_information(q, 2, seeded())
    assert information == pytest.approx(0.5 * math.log(5), abs=0.05)
    # However much of it is computed at once, it is the same.
    monkeypatch.setattr(sys.modules[representation.__module__], "IMAGES_AT_ONCE", 4000)
    assert mutual_information(q, 2, seeded()) == pytest.approx(information)


def test_units_are_active_where_the_posterior_mean_moves(digits: Data):
    still = DiagonalGaussian(torch.zeros(50, 3), torch.zeros(50, 3))
    assert active_units(still) == 0
    means = torch.randn(2000, 4, generator=seeded()) * torch.tensor([0.08, 0.12, 1.0, 0.0]) + 3
    assert active_units(DiagonalGaussian(means, torch.zeros(2000, 4))) == 2


def test_ppca_says_what_its_closed_form_says(digits: Data):
    model = trained("ppca", digits, latent_dim=20)
    assert isinstance(model, PPCA)
    found = representation(Evaluation(model, digits, EvaluateConfig(images="all"))).metrics
    for split, images in digits.splits.items():
        batch = images.batch(torch.arange(len(images)))
        q = model.posterior(batch)
        assert found[f"{split}/rate"] == pytest.approx(q.kl(model.prior).mean().item(), rel=1e-5)
        # -E_q[log p(x|z)]: the residual of the mean, and what the posterior's spread adds through the loadings.
        spread = (model.loadings.square().sum(0) * q.log_var.exp()).sum(-1) / (2 * model.config.sigma**2)
        expected = (spread - model.likelihood.log_prob(batch.x, model.decode(q.mean))).mean().item()
        assert found[f"{split}/distortion"] == pytest.approx(expected, abs=1)
        exact = model.exact_log_px(batch.x).mean().item()
        assert -(found[f"{split}/rate"] + found[f"{split}/distortion"]) == pytest.approx(exact, abs=1)
        assert 0 <= found[f"{split}/rate"] - found[f"{split}/aggregate_kl"] <= math.log(len(images)) + 1e-9
    # Of the training images the mean of unit d has the variance w² / (w² + sigma²), where w is its loading's length.
    lengths = model.loadings.square().sum(0)
    assert found["train/active_units"] == (lengths / (lengths + model.config.sigma**2) > 0.01).sum()
