"""Observation models are normalised: constants included, they sum or integrate to 1."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

from elbolab.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood


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


# From far below to far above lambda = 1/2, and on both sides of where the series ends.
LOGITS = torch.tensor([-60.0, -7.0, -1.0, -0.2501, -0.2499, -1e-3, 0.0, 1e-6, 0.2, 0.3, 4.0, 30.0], dtype=torch.float64)


def one_pixel(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)


def test_continuous_bernoulli_integrates_to_one_with_its_mean():
    # Gauss-Legendre of 200 nodes is exact to rounding for densities as smooth as these.
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(200))
    x, weights = (nodes + 1) / 2, weights / 2
    for logit in LOGITS:
        density = ContinuousBernoulli().log_prob(one_pixel(x), one_pixel(logit).expand(200, 1, 1, 1)).exp()
        assert (density * weights).sum().item() == pytest.approx(1, abs=1e-10)
        mean = ContinuousBernoulli().mean(logit)
        assert (density * x * weights).sum().item() == pytest.approx(mean.item(), abs=1e-10)


def test_continuous_bernoulli_is_torchs_where_that_is_accurate():
    # Near lambda = 1/2 torch takes a series of fewer terms.
    logits = LOGITS[(LOGITS.abs() > 0.1) & (LOGITS.abs() < 20)]
    expected = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))
    for x in (0.0, 0.3, 1.0):
        got = ContinuousBernoulli().log_prob(one_pixel(torch.tensor([x]).double()), one_pixel(logits))
        torch.testing.assert_close(got, expected.log_prob(torch.tensor(x).double()))
    torch.testing.assert_close(ContinuousBernoulli().mean(logits), expected.mean)


def test_continuous_bernoulli_has_the_score_of_an_exponential_family_in_single_precision():
    # d/dl log p(x) = x - mean(l), also where the two ways to compute it meet and where a sigmoid is 0 or 1.
    logits = torch.cat([LOGITS.float(), torch.tensor([-200.0, 200.0])]).requires_grad_()
    (score,) = torch.autograd.grad(
        ContinuousBernoulli().log_prob(torch.full((14, 1, 1, 1), 0.3), one_pixel(logits)).sum(), logits
    )
    torch.testing.assert_close(
        score, 0.3 - ContinuousBernoulli().mean(logits.detach().double()).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), Bernoulli(), ContinuousBernoulli()])
def test_draws_have_the_mean_and_the_variance_of_the_density(likelihood: Likelihood):
    params = likelihood.from_mean(torch.tensor([0.05, 0.3, 0.5, 0.9])).reshape(1, 1, 2, 2)
    params.requires_grad_()
    mean, count = likelihood.mean(params), 40_000
    # In an exponential family the variance is the derivative of the mean by the natural parameter.
    natural = torch.autograd.grad(mean.sum(), params)[0]
    variance = natural * likelihood.sigma**2 if isinstance(likelihood, Gaussian) else natural
    x = likelihood.sample(params.detach().expand(count, 1, 2, 2), torch.Generator().manual_seed(0))
    deviation = x - mean[0].detach()
    for draws, expected in ((deviation, torch.zeros(1, 2, 2)), (deviation.square(), variance[0])):
        assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / count**0.5 + 1e-6).all()
    again = likelihood.sample(params.detach().expand(count, 1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_from_mean_is_undone_by_mean():
    mean = torch.rand(2, 1, 3, 3) * 0.9 + 0.05
    for likelihood in (Gaussian(0.4), Bernoulli(), ContinuousBernoulli()):
        torch.testing.assert_close(likelihood.mean(likelihood.from_mean(mean)), mean)


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), Bernoulli(), ContinuousBernoulli()])
def test_the_parameters_of_a_mean_have_it_and_are_finite_for_black_and_white(likelihood: Likelihood):
    mean = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(likelihood.mean(likelihood.from_mean(mean)), mean, atol=1e-3, rtol=0)
    ends = torch.tensor([0.0, 1.0])
    assert likelihood.from_mean(ends).isfinite().all()
    torch.testing.assert_close(likelihood.mean(likelihood.from_mean(ends)), ends, atol=0.02, rtol=0)
