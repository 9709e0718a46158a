"""The estimator that is quoted: closed forms, quadrature, bounds from both sides, tolerance, and means over splits."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import batch_of, linear_gaussian, make_likelihood, trained
from torch import Tensor

from elbolab.config.schema import EvaluateConfig, LikelihoodConfig
from elbolab.data.splits import Data, DataSpec
from elbolab.evaluation import Evaluation
from elbolab.evaluation.gaussian_approximation import fit_gaussian, measure_curvature, standard_log_prob
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.likelihood import likelihood
from elbolab.evaluation.log_likelihood import (
    CHAINS,
    DISTRIBUTIONS,
    LARGEST_K,
    LEAPFROG,
    anneal_whitened,
    estimate_log_px,
)
from elbolab.evaluation.split_means import class_means, split_mean
from elbolab.evaluation.weights import summarise
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.models.likelihoods import LIKELIHOODS
from elbolab.models.posteriors import DiagonalGaussian
from elbolab.models.ppca import PPCA
from elbolab.models.priors.mixture import Mixture
from elbolab.models.priors.normal import StandardNormal


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_vae(latent_dim: int, likelihood: str = "gaussian", **fields: object) -> LatentModel:
    """A decoder with some curvature, of images of 6 by 6 pixels."""
    torch.manual_seed(1)
    config = MODELS["vae"].Config.parse(
        {"latent_dim": latent_dim, "net": "mlp", "hidden": 16, "activation": "tanh", "likelihood": likelihood, **fields}
    )
    model = MODELS["vae"](config, DataSpec((1, 6, 6), 10, 8, 8, "")).eval()
    assert isinstance(model, LatentModel)
    for parameter in model.parameters():
        parameter.data.mul_(2.5)
    return model


def images_of(model: LatentModel, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """z of the prior and images that the model makes of them."""
    z = model.prior.sample((count,), seeded(seed))
    with torch.no_grad():
        return z, model.likelihood.sample(model.decode(z), seeded(seed + 1))


def by_quadrature(model: LatentModel, x: Tensor, count: int = 281) -> Tensor:
    """log p(x) by a fine grid over two latent dimensions, of so many points each."""
    points = torch.linspace(-7, 7, count)
    grid = torch.cartesian_prod(points, points)
    with torch.no_grad():
        joint = torch.cat([model.log_joint(x, part[:, None].expand(-1, len(x), -1)) for part in grid.split(2000)])
    return joint.double().logsumexp(0) + 2 * math.log(points[1] - points[0])


@pytest.mark.parametrize(
    ("name", "sigma"),
    [("gaussian", 0.3), ("gaussian", "learned"), ("bernoulli", 0.4), ("continuous_bernoulli", 0.4)],
)
def test_fisher_information_is_the_mean_curvature_of_the_log_likelihood(name: str, sigma: float | str):
    likelihood = make_likelihood(name, sigma=sigma).requires_grad_(False)
    params = torch.tensor([-6.0, -1.0, -0.2, 0.0, 0.24, 0.26, 3.0], dtype=torch.float64).view(1, 1, 7)
    x = likelihood.sample(params.expand(20_000, 1, 1, 7), seeded())
    own = params.expand(20_000, 1, 1, 7).clone().requires_grad_()
    (slope,) = torch.autograd.grad(likelihood.log_prob(x, own).sum(), own)
    # The variance of the score, whose mean is 0.
    found = likelihood.fisher(params).view(7)
    torch.testing.assert_close(slope.view(-1, 7).var(0), found, rtol=0.1, atol=2e-3)


def test_precision_of_a_prior_is_the_curvature_of_its_log_density():
    config = MODELS["vae"].Config.parse({"latent_dim": 3, "prior": "mixture", "prior_components": 1})
    one = Mixture(config)
    one.log_vars.data = torch.tensor([[0.3, -1.0, 0.7]])
    for prior in (StandardNormal(config), one):
        z = torch.randn(3, generator=seeded())
        hessian = torch.autograd.functional.hessian(prior.log_prob, z)
        torch.testing.assert_close(prior.precision(z), -torch.as_tensor(hessian).diagonal(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("latent_dim", "shape"), [(2, (1, 8, 8)), (50, (1, 8, 8)), (200, (1, 16, 16))])
def test_of_a_linear_decoder_the_gaussian_is_the_posterior(
    latent_dim: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
):
    model, x = linear_gaussian(latent_dim, shape=shape)
    exact = model.exact_log_px(x).double()
    q = model.posterior(batch_of(x))
    start = torch.zeros_like(q.mean)
    found = fit_gaussian(model, x, start, measure_curvature(model, start), seeded())
    torch.testing.assert_close(found.mean, q.mean, atol=5e-3, rtol=0)
    estimate = importance_estimate(model, x, found, 200, seeded())
    torch.testing.assert_close(estimate.log_px, exact, atol=5e-3, rtol=0)
    # All weights are equal.
    assert (estimate.ess > 199).all()
    # And so they are on every other rung.
    log_w, _ = anneal_whitened(model, x, found, 4, 8, seeded())
    torch.testing.assert_close(log_w, exact.expand(4, -1), atol=0.05, rtol=0)
    monkeypatch.setattr(PPCA, "exact_log_px", lambda self, x: None)
    whole = estimate_log_px(model, x, DiagonalGaussian(start, start), LikelihoodConfig(), seeded())
    torch.testing.assert_close(whole.log_px, exact, atol=5e-3, rtol=0)
    assert (whole.rung == 1).all()
    assert not whole.unreliable.any()


def test_the_gaussian_is_the_posterior_under_a_prior_of_other_scales_too():
    """z of scales s under loadings W is z of scale 1 under loadings W s, whose log p(x) is known."""
    scales = torch.tensor([0.05, 0.3, 1.0, 3.0])
    model, x = linear_gaussian(4, shape=(1, 8, 8))
    exact = model.exact_log_px(x).double()
    config = MODELS["vae"].Config.parse({"latent_dim": 4, "prior": "mixture", "prior_components": 1})
    model.prior = Mixture(config)
    model.prior.means.data.zero_()
    model.prior.log_vars.data = 2 * scales.log()[None]
    model.loadings = model.loadings / scales
    start = torch.zeros(len(x), 4)
    found = fit_gaussian(model, x, start, measure_curvature(model, start), seeded())
    estimate = importance_estimate(model, x, found, 200, seeded())
    torch.testing.assert_close(estimate.log_px, exact, atol=5e-3, rtol=0)
    assert (estimate.ess > 199).all()


def test_whitened_coordinates_are_a_linear_map_with_its_determinant():
    model = small_vae(5)
    z, x = images_of(model, 4)
    found = fit_gaussian(model, x, z, measure_curvature(model, z), seeded())
    u = torch.randn(3, 4, 5, generator=seeded())
    torch.testing.assert_close(found.to_whitened(found.to_latent(u)), u, atol=1e-4, rtol=1e-4)
    rows = [
        torch.func.jacrev(lambda at, one=found[[i]]: one.to_latent(at[None, None])[0, 0])(u[0, i]) for i in range(4)
    ]
    torch.testing.assert_close(found.log_det, torch.linalg.slogdet(torch.stack(rows)).logabsdet, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.log_prob(found.to_latent(u)), standard_log_prob(u) - found.log_det)


def test_a_start_narrower_than_the_posterior_is_further_below_it(monkeypatch: pytest.MonkeyPatch):
    model = small_vae(2)
    z, x = images_of(model, 60)
    exact, q = by_quadrature(model, x), DiagonalGaussian(z, torch.zeros_like(z))
    # So that all are annealed.
    monkeypatch.setattr("elbolab.evaluation.log_likelihood.LARGEST_K", -math.inf)
    monkeypatch.setattr("elbolab.evaluation.log_likelihood.NEGLIGIBLE_VARIANCE", 0)
    below, gaps = {}, {}
    for wider in (0.6, 1.3):
        monkeypatch.setattr("elbolab.evaluation.log_likelihood.WIDER", wider)
        found = estimate_log_px(model, x, q, LikelihoodConfig(), seeded(), z)
        assert (found.rung > 1).all()
        below[wider] = (exact - found.log_px).mean().item()
        gaps[wider] = (found.upper - found.log_px).mean().item()
    assert abs(below[1.3]) < 0.5 * below[0.6]
    assert abs(gaps[1.3]) < 0.5 * gaps[0.6]


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_every_rung_agrees_with_quadrature(name: str, prior: str):
    model = small_vae(2, name, prior=prior)
    z, x = images_of(model, 12)
    # Small scales of a logistic make posteriors that would fall between the points of a coarser grid.
    exact = by_quadrature(model, x, 561)
    start = torch.zeros_like(z)
    gaussian = fit_gaussian(model, x, z, measure_curvature(model, z), seeded())
    for log_w in (
        importance_estimate(model, x, gaussian, 2000, seeded()).log_w,
        anneal_whitened(model, x, gaussian, 200, 8, seeded())[0],
    ):
        assert log_w is not None
        found = summarise(log_w)
        assert ((found.log_px - exact).abs() < 4 * found.std_err + 0.02).all()
    found = estimate_log_px(model, x, DiagonalGaussian(z, start), LikelihoodConfig(), seeded())
    assert (found.log_px - exact).mean().abs() < 0.1
    assert (found.std_err <= 0.3).all()


def test_bounds_from_both_sides_hold_log_px_between_them():
    model = small_vae(2)
    z, x = images_of(model, 200)
    exact = by_quadrature(model, x)
    # A start that is far too narrow, so that either side is off by something.
    gaussian = fit_gaussian(model, x, z, measure_curvature(model, z), seeded())
    narrow = replace(gaussian, scale=0.6 * gaussian.scale)
    log_w, back = anneal_whitened(model, x, narrow, 4, 4, seeded(), z)
    assert back is not None
    lower = log_w.logsumexp(0) - math.log(4)
    upper = torch.cat([log_w[1:], back[None]]).logsumexp(0) - math.log(4)
    error = (upper - lower).std() / math.sqrt(200)
    assert (lower - exact).mean() < error
    assert (upper - exact).mean() > -error
    assert (upper - lower).mean() > 2 * error
    # The weights on the way there are unbiased.
    narrow = replace(gaussian, scale=0.8 * gaussian.scale)[:20]
    log_w, _ = anneal_whitened(model, x[:20], narrow, 500, 8, seeded())
    assert ((log_w - exact[:20]).exp().mean() - 1).abs() < 0.03


def test_moves_in_bfloat16_are_made_up_for_by_the_weights():
    model = small_vae(2, precision="bfloat16")
    z, x = images_of(model, 50)
    gaussian = fit_gaussian(model, x, z, measure_curvature(model, z), seeded())
    log_w, back = anneal_whitened(model, x, gaussian, 64, 8, seeded(), z)
    assert model.precision == torch.bfloat16
    assert back is not None
    assert not model._as_in_training
    exact = by_quadrature(model, x)
    error = (summarise(log_w).log_px - exact).std() / math.sqrt(50)
    assert (summarise(log_w).log_px - exact).mean().abs() < 4 * error + 0.01


def test_a_smaller_tolerance_takes_more_and_a_small_budget_is_told():
    model = small_vae(20, sigma=0.1)
    z, x = images_of(model, 10)
    q = DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z))
    config = LikelihoodConfig(samples=50, tolerance=0.05)
    strict = estimate_log_px(model, x, q, config, seeded())
    loose = estimate_log_px(model, x, q, LikelihoodConfig(samples=50, tolerance=1.0), seeded())
    assert (strict.rung >= loose.rung).all()
    assert strict.rung.sum() > loose.rung.sum()
    assert (strict.std_err[~strict.unreliable] <= 0.05).all()
    poor = estimate_log_px(model, x, q, LikelihoodConfig(samples=50, tolerance=0.001, budget=1), seeded())
    assert poor.unreliable.all()
    assert poor.log_px.isfinite().all()
    again = estimate_log_px(model, x, q, config, seeded())
    assert torch.equal(again.log_px, strict.log_px)


def test_what_sampling_does_well_is_not_annealed():
    model = small_vae(2)
    z, x = images_of(model, 40)
    found = estimate_log_px(model, x, DiagonalGaussian(z, torch.zeros_like(z)), LikelihoodConfig(), seeded())
    sampled = found.rung == 1
    assert sampled.any()
    # Weights that differ are no reason, as long as the largest are not too heavy.
    assert (found.std_err[sampled] > 0).all()
    assert ((found.pareto_k[sampled] <= LARGEST_K) | (found.std_err[sampled] < 0.01)).all()
    assert not found.unreliable[sampled].any()


@pytest.mark.parametrize(
    ("spare", "rung"), [(-1, 1), (0, 32), (64 * CHAINS * LEAPFROG - 1, 32), (64 * CHAINS * LEAPFROG, 64)]
)
def test_an_image_takes_no_more_gradients_than_its_budget(spare: int, rung: int):
    """A rung of 32 distributions, and with the gradients for 64 more one of 64 after it."""
    model = small_vae(20, sigma=0.1)
    z, x = images_of(model, 4)
    q = DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z))
    budget = CHAINS * LEAPFROG * DISTRIBUTIONS[0] + spare
    config = LikelihoodConfig(samples=50, tolerance=1e-6, budget=budget)
    assert estimate_log_px(model, x, q, config, seeded()).rung.tolist() == [rung] * 4


def test_the_mean_over_a_split_is_exact_where_all_is_known():
    everyone = pd.DataFrame({"elbo": np.linspace(-9, 5, 40) ** 2})
    some = everyone.elbo.iloc[[1, 5, 17, 30]]
    mean, error = split_mean(2 + 3 * some, everyone)
    assert mean == pytest.approx(2 + 3 * everyone.elbo.mean())
    assert error == pytest.approx(0, abs=1e-6)
    # All images leave but the noise of their estimates.
    values = pd.Series(np.random.default_rng(0).normal(size=40))
    mean, error = split_mean(values, everyone, noise=0.04)
    assert (mean, error) == (pytest.approx(values.mean()), pytest.approx(0.2 / math.sqrt(40)))
    assert split_mean(values.iloc[:1], everyone)[0] == values.iloc[0]
    assert math.isnan(split_mean(values.iloc[:1], everyone)[1])


def test_the_mean_over_a_split_is_unbiased_and_its_error_is_right():
    rng = np.random.default_rng(0)
    everyone = pd.DataFrame({"elbo": rng.normal(0, 10, 500)})
    values = everyone.elbo + 0.02 * everyone.elbo**2 + rng.normal(0, 1, 500)
    found = []
    for _ in range(600):
        rows = rng.choice(500, 60, replace=False)
        found.append((*split_mean(values.iloc[rows], everyone), values.iloc[rows].mean()))
    means, errors, plain = np.array(found).T
    assert means.mean() == pytest.approx(values.mean(), abs=4 * means.std() / math.sqrt(600) + 0.1)
    assert errors.mean() == pytest.approx(means.std(), rel=0.15)
    assert means.std() < plain.std() / 2
    inside = np.abs(means - values.mean()) < 1.96 * errors
    assert inside.mean() > 0.85


def test_the_mean_of_each_class_is_over_its_images_of_the_split():
    rng = np.random.default_rng(1)
    labels = pd.Series(np.arange(600) % 3)
    elbo = pd.Series(rng.normal(0, 5, 600)) + 10 * labels
    values = elbo + 2 * labels + pd.Series(rng.normal(0, 0.5, 600))
    rows = rng.choice(600, 60, replace=False)
    found = class_means(values.iloc[rows], elbo, labels)
    for label, (mean, error) in found.items():
        assert abs(mean - values[labels == label].mean()) < 4 * error
        assert 0 < error < 0.3


def test_the_evaluator_quotes_the_mean_over_the_whole_split(digits: Data):
    model = trained("vae", digits, latent_dim=3, net="mlp", hidden=16)
    evaluation = Evaluation(model, digits, EvaluateConfig(images=20, simulated=5))
    found = likelihood(evaluation)
    rows = found.files["likelihood.parquet"].query("split == 'test' and posterior == 'encoder'").set_index("index")
    everyone = found.files["population.parquet"].query("split == 'test'").set_index("index")
    assert len(everyone) == len(digits.test)
    mean, error = split_mean(rows.log_px, everyone[["elbo"]], float((rows.std_err**2).mean()))
    assert found.metrics["test/log_px"] == pytest.approx(mean)
    assert found.metrics["test/log_px_se"] == pytest.approx(error)
    assert found.metrics["test/log_px_evaluated"] == pytest.approx(rows.log_px.mean())
    assert error < found.metrics["test/log_px_evaluated_se"] / 2
    assert found.metrics["test/unreliable"] == 0
    assert found.metrics["simulated/bias"] < 0.2


def test_of_a_closed_form_all_images_count(digits: Data):
    model = trained("ppca", digits, latent_dim=4)
    found = likelihood(Evaluation(model, digits, EvaluateConfig(images=20))).metrics
    x = digits.test.batch(torch.arange(len(digits.test))).x
    assert found["test/log_px"] == pytest.approx(model.exact_log_px(x).double().mean().item(), abs=1e-3)
    assert found["test/log_px_se"] == pytest.approx(0, abs=1e-3)
    assert "simulated/bias" not in found


def test_two_images_have_no_slope_and_an_error():
    everyone = pd.DataFrame({"elbo": [0.0, 1.0, 5.0, 9.0]})
    mean, error = split_mean(pd.Series([1.0, 3.0]), everyone)
    assert mean == 2
    # The error of a mean of two of four: half of what is left of the variance.
    assert error == pytest.approx(math.sqrt(2.0 * (1 - 2 / 4) / 2))


def test_classes_whose_images_are_all_known_alike_have_their_plain_means():
    values, labels = pd.Series([1.0, 3.0, 5.0, 7.0]), pd.Series([0, 0, 1, 1])
    found = class_means(values, pd.Series([2.0, 2.0, 4.0, 4.0]), labels)
    assert {label: mean for label, (mean, _) in found.items()} == {0: 2.0, 1: 6.0}
