"""Observation models are normalised: constants included, they sum or integrate to 1."""

import itertools

import numpy as np
import pytest
import torch
from conftest import make_likelihood
from scipy.stats import norm

from elbolab.models.likelihoods import LIKELIHOODS, Likelihood
from elbolab.models.likelihoods.bernoulli import Bernoulli
from elbolab.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from elbolab.models.likelihoods.gaussian import LEAST, Gaussian


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.3])
def test_gaussian_integrates_to_one(sigma: float):
    axis = torch.linspace(-12 * sigma, 12 * sigma, 801, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    mean = torch.tensor([0.3 * sigma, -0.8 * sigma], dtype=torch.float64).reshape(1, 1, 1, 2)
    density = make_likelihood("gaussian", sigma=sigma).log_prob(x, mean.expand_as(x)).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-6)


def test_gaussian_is_the_normal_density():
    x, mean = torch.rand(3, 1, 4, 4), torch.rand(5, 3, 1, 4, 4)
    expected = norm.logpdf(x.numpy(), mean.numpy(), 0.4).sum((-3, -2, -1))
    torch.testing.assert_close(make_likelihood("gaussian").log_prob(x, mean), torch.from_numpy(expected).float())


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


@pytest.fixture(params=[*LIKELIHOODS, "learned"])
def likelihood(request: pytest.FixtureRequest) -> Likelihood:
    """Each likelihood, and a gaussian whose sigma is learned."""
    if request.param != "learned":
        return make_likelihood(request.param)
    return make_likelihood("gaussian", sigma="learned").requires_grad_(False)


def test_draws_have_the_mean_and_the_variance_of_the_density(likelihood: Likelihood):
    if likelihood.of_bytes:
        pytest.skip("its draws are held against all its probabilities in test_discretised_logistic.py")
    params = likelihood.from_mean(torch.tensor([0.05, 0.3, 0.5, 0.9]).view(1, 1, 2, 2))
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


def test_the_parameters_of_a_mean_have_it_and_are_finite_for_black_and_white(likelihood: Likelihood):
    mean = torch.linspace(0.05, 0.95, 19).expand(2, 3, 1, 19)
    params = likelihood.from_mean(mean)
    assert params.shape == (2, likelihood.per_pixel * 3, 1, 19)
    torch.testing.assert_close(likelihood.mean(params), mean, atol=2e-6, rtol=1e-5)
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 2)
    assert likelihood.from_mean(ends).isfinite().all()
    torch.testing.assert_close(likelihood.mean(likelihood.from_mean(ends)), ends, atol=0.02, rtol=0)


def test_the_mean_layer_gives_the_mean_of_the_parameters(likelihood: Likelihood):
    activations = 3 * torch.randn(5, likelihood.per_pixel * 3, 2, 4)
    mean = likelihood.mean(likelihood.params(activations))
    assert mean.shape == (5, 3, 2, 4)
    torch.testing.assert_close(likelihood.mean_layer()(activations), mean)


def test_to_make_one_draws_no_random_number(likelihood: Likelihood):
    before = torch.get_rng_state()
    made = [make_likelihood(name, sigma="learned") for name in LIKELIHOODS]
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for one in made for name, _ in one.named_parameters()] == ["log_sigma"]


def test_a_learned_sigma_is_best_at_the_residual_and_never_below_the_rounding_of_a_byte():
    likelihood = make_likelihood("gaussian", sigma="learned")
    assert isinstance(likelihood, Gaussian)
    x, mean = torch.rand(50, 1, 4, 4), torch.rand(50, 1, 4, 4)
    fixed = make_likelihood("gaussian", sigma=0.4)
    torch.testing.assert_close(likelihood.log_prob(x, mean), fixed.log_prob(x, mean))
    # The maximum-likelihood sigma is the root mean square residual, at which the slope is 0.
    likelihood.log_sigma.data = (x - mean).square().mean().sqrt().log()
    (slope,) = torch.autograd.grad(likelihood.log_prob(x, mean).sum(), likelihood.log_sigma)
    assert abs(slope.item()) < 1e-2
    likelihood.log_sigma.data.fill_(-30)
    assert likelihood.learned()["sigma"].item() == pytest.approx(LEAST)
    assert likelihood.log_prob(x, x).isfinite().all()
    assert likelihood.description == "gaussian sigma=learned"
