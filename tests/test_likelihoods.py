"""Observation models are normalised: constants included, they sum or integrate to 1."""

import itertools

import pytest
import torch
from scipy.stats import norm

from elbolab.likelihoods import Bernoulli, Gaussian


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.3])
def test_gaussian_integrates_to_one(sigma: float):
    axis = torch.linspace(-12 * sigma, 12 * sigma, 801, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    mean = torch.tensor([0.3 * sigma, -0.8 * sigma], dtype=torch.float64).reshape(1, 1, 1, 2)
    density = Gaussian(sigma).log_prob(x, mean.expand_as(x)).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-6)


def test_gaussian_is_the_normal_density():
    x, mean = torch.rand(3, 1, 4, 4), torch.rand(5, 3, 1, 4, 4)
    expected = norm.logpdf(x.numpy(), mean.numpy(), 0.4).sum((-3, -2, -1))
    torch.testing.assert_close(Gaussian(0.4).log_prob(x, mean), torch.from_numpy(expected).float())


def test_bernoulli_sums_to_one():
    logits = torch.randn(1, 2, 5, dtype=torch.float64) * 2
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)), dtype=torch.float64).reshape(-1, 1, 2, 5)
    total = Bernoulli().log_prob(images, logits.expand(len(images), 1, 2, 5)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_binarisation_is_drawn_anew_with_the_pixel_as_its_mean():
    x = torch.full((4000, 1, 2, 2), 0.3)
    first, second = Bernoulli().observe(x), Bernoulli().observe(x)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    # 16,000 draws of variance 0.21: five standard errors.
    assert first.mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 16000) ** 0.5)


def test_from_mean_is_undone_by_mean():
    mean = torch.rand(2, 1, 3, 3) * 0.9 + 0.05
    for likelihood in (Gaussian(0.4), Bernoulli()):
        torch.testing.assert_close(likelihood.mean(likelihood.from_mean(mean)), mean)
