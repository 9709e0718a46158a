"""Annealed importance sampling, bounds from both sides and the inference gap, against a decoder that is exact."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import batch_of, linear_gaussian, trained

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data, DataSpec
from elbolab.evaluation import Evaluation
from elbolab.evaluation.annealing import ACCEPTANCE, PriorStart, annealed_estimate, betas, bidirectional_bounds
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.inference_gap import best_of_family, gap
from elbolab.evaluation.likelihood import likelihood
from elbolab.models.posteriors import POSTERIORS, DiagonalGaussian
from elbolab.models.posteriors.full import FullGaussian
from elbolab.models.ppca import PPCA, PPCAConfig
from elbolab.support.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_normal(like: torch.Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(torch.zeros_like(like), torch.zeros_like(like))


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_temperatures_rise_from_zero_to_one(schedule: str):
    found = betas(EvaluateConfig(ais_distributions=100, ais_schedule=schedule))  # pyright: ignore[reportArgumentType]
    assert (len(found), found[0].item(), found[-1].item()) == (101, 0, 1)
    steps = found.diff()
    assert (steps > 0).all()
    torch.testing.assert_close(steps, steps.flip(0))
    assert (steps[50] > 10 * steps[0]) == (schedule == "sigmoid")


@pytest.mark.parametrize(
    ("schedule", "sigma", "shape", "seed"),
    [("sigmoid", 0.8, (1, 8, 8), 0), ("linear", 0.8, (1, 8, 8), 1), ("sigmoid", 0.6, (3, 4, 5), 2)],
)
def test_ais_from_the_prior_is_exact_within_its_error_in_fifty_dimensions(
    schedule: str, sigma: float, shape: tuple[int, int, int], seed: int
):
    model, x = linear_gaussian(50, sigma=sigma, shape=shape, seed=seed)
    config = EvaluateConfig(ais_chains=32, ais_distributions=400, ais_leapfrog=5, ais_schedule=schedule)  # pyright: ignore[reportArgumentType]
    prior = standard_normal(model.posterior(batch_of(x)).mean)
    found = annealed_estimate(model, x, PriorStart(model.prior, len(x)), config, seeded(seed))
    error = (found.log_px - model.exact_log_px(x)).mean()
    assert abs(error) < 3 * found.std_err.square().mean().sqrt() / math.sqrt(len(x))
    assert found.acceptance is not None
    # Far above it only before the first steps, which are small, have grown.
    assert ((found.acceptance - ACCEPTANCE).abs() < 0.1).all()
    # Importance sampling from the same start misses by much more than it says.
    plain = importance_estimate(model, x, prior, 5000, seeded())
    assert (plain.log_px < model.exact_log_px(x) - 2).all()


def test_ais_from_q_needs_fewer_distributions():
    model, x = linear_gaussian(20, shape=(1, 8, 8))
    q = model.posterior(batch_of(x))
    near = DiagonalGaussian(q.mean + 0.05, q.log_var + 0.2)
    config = EvaluateConfig(ais_chains=16, ais_distributions=30, ais_leapfrog=5)
    errors = [
        (annealed_estimate(model, x, start, config, seeded()).log_px - model.exact_log_px(x)).abs().mean().item()
        for start in (PriorStart(model.prior, len(x)), near)
    ]
    assert errors[1] < 0.2 < 1 < errors[0]


def test_ais_from_the_exact_posterior_has_equal_weights():
    model, x = linear_gaussian(5)
    q = model.posterior(batch_of(x))
    found = annealed_estimate(model, x, q, EvaluateConfig(ais_chains=4, ais_distributions=5), seeded())
    torch.testing.assert_close(found.log_px.float(), model.exact_log_px(x), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 4), atol=1e-2, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_weight_is_px_since_step_sizes_do_not_heed_the_chain(seed: int):
    model, x = linear_gaussian(2, seed=seed)
    start = PriorStart(model.prior, len(x))
    config = EvaluateConfig(ais_chains=20_000, ais_distributions=40, ais_leapfrog=1)
    found = annealed_estimate(model, x, start, config, seeded(seed))
    error = found.log_px - model.exact_log_px(x)
    assert (error.abs() < 3.5 * found.std_err).all()
    assert error.mean().abs() < 3 * found.std_err.square().sum().sqrt() / len(x) < 0.03


@pytest.mark.parametrize(
    ("latent_dim", "shape", "seed"), [(10, (1, 4, 5), 0), (10, (1, 4, 5), 1), (20, (3, 3, 4), 2), (3, (1, 3, 3), 3)]
)
def test_the_reverse_bound_is_above_and_the_forward_below_log_px(
    latent_dim: int, shape: tuple[int, int, int], seed: int
):
    model, _ = linear_gaussian(latent_dim, shape=shape, seed=seed)
    z = torch.randn(64, latent_dim, generator=seeded(seed))
    x = model.likelihood.sample(model.decode(z), seeded(seed + 1))
    start = PriorStart(model.prior, len(x))
    gaps = []
    for distributions in (10, 100):
        config = EvaluateConfig(ais_chains=4, ais_distributions=distributions, ais_leapfrog=5)
        lower, upper = bidirectional_bounds(model, x, z, start, config, seeded(seed + 2))
        exact = model.exact_log_px(x)
        assert lower.mean() < exact.mean() < upper.mean()
        gaps.append((upper - lower).mean().item())
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize(("latent_dim", "shape", "seed"), [(3, (1, 3, 4), 5), (2, (1, 4, 4), 6), (4, (3, 2, 3), 7)])
def test_the_best_factorised_gaussian_has_the_known_gap(latent_dim: int, shape: tuple[int, int, int], seed: int):
    # Loadings that are not orthogonal, so that no factorised q is the posterior.
    model, _ = linear_gaussian(latent_dim, shape=shape, seed=seed)
    model.loadings = model.loadings @ torch.linalg.qr(torch.randn(latent_dim, latent_dim, generator=seeded(seed))).Q
    x = model.likelihood.sample(model.decode(torch.randn(6, latent_dim, generator=seeded())), seeded(1))
    precision = model.loadings.T @ model.loadings / model.config.sigma**2 + torch.eye(latent_dim)
    # The best factorised q has the posterior's mean and the diagonal of its precision P (Bishop 2006, eq. 10.13).
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert gap > 0.3
    config = EvaluateConfig(samples=4000, local_steps=400, local_lr=0.05, local_samples=100)
    start = standard_normal(torch.zeros(6, latent_dim))
    best = best_of_family(model, x, [start], config, seeded())
    torch.testing.assert_close((-best.log_var).exp(), precision.diagonal().expand(6, latent_dim), rtol=0.1, atol=0)
    reached = importance_estimate(model, x, best, 50000, seeded()).elbo.float()
    torch.testing.assert_close(reached, model.exact_log_px(x) - gap, atol=0.03, rtol=0)
    # A full covariance holds the posterior itself: of the approximation gap nothing is left.
    whole = best_of_family(model, x, [FullGaussian.around(start.mean, start.log_var)], config, seeded())
    covariance = whole.scale_tril @ whole.scale_tril.mT
    torch.testing.assert_close(covariance, torch.linalg.inv(precision).expand_as(covariance), atol=0.01, rtol=0.05)
    reached = importance_estimate(model, x, whole, 50000, seeded())
    torch.testing.assert_close(reached.elbo.float(), model.exact_log_px(x), atol=0.01, rtol=0)
    exact = torch.linalg.cholesky(torch.linalg.inv(precision)).expand(6, -1, -1)
    rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
    mean = (x.flatten(1) - model.mean) @ model.loadings / model.config.sigma**2 @ torch.linalg.inv(precision)
    known = FullGaussian(
        mean, 2 * exact.diagonal(dim1=-2, dim2=-1).log(), exact[:, rows, columns] / exact[:, rows, rows]
    )
    reached = importance_estimate(model, x, known, 1000, seeded())
    torch.testing.assert_close(reached.elbo.float(), model.exact_log_px(x), atol=1e-4, rtol=1e-5)


def test_the_best_of_several_starts_is_never_worse_than_each():
    model, x = linear_gaussian(4)
    q = model.posterior(batch_of(x))
    config = EvaluateConfig(samples=2000, local_steps=1, local_lr=1e-4)
    far = DiagonalGaussian(q.mean + 3, q.log_var)
    for starts in ((q, far), (far, q)):
        torch.testing.assert_close(best_of_family(model, x, starts, config, seeded()).mean, q.mean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("start", ["prior", "q", "both"])
def test_the_best_q_is_not_below_the_models_own_however_short_the_search(digits: Data, start: str):
    model = trained("latent_opt", digits, latent_dim=4, fit_steps=50, net="mlp", hidden=8)
    values = {"images": 10, "gap_images": 10, "ais_chains": 2, "ais_distributions": 2, "ais_leapfrog": 1}
    config = EvaluateConfig.parse({**values, "local_steps": 1, "local_start": start})
    found = gap(Evaluation(model, digits, config))
    table = found.files["gap.parquet"]
    assert (table.amortization_gap > -0.1).all()
    if start == "prior":
        # One step from there leads nowhere: the fitted row is the best, and judged by the same samples as itself.
        assert (table[table.split == "test"].amortization_gap == 0).all()


def test_gaps_add_up_and_vanish_for_the_exact_posterior(digits: Data):
    model = PPCA(PPCAConfig(dataset="mnist5k", latent_dim=4), digits.spec)
    model.prepare(digits)
    config = EvaluateConfig(
        images=10, gap_images=4, samples=500, ais_distributions=500, ais_leapfrog=5, local_steps=100, local_samples=5
    )
    found = gap(Evaluation(model, digits, config))
    table = found.files["gap.parquet"]
    assert table.groupby("split").size().to_dict() == {"train": 4, "test": 4}
    assert (table.inference_gap - table.approximation_gap - table.amortization_gap).abs().max() < 1e-9
    assert table.inference_gap.abs().max() < 1e-3
    assert table.approximation_gap.abs().max() < 0.2
    # The exact row comes out of the estimator within its error.
    assert ((table.log_px_ais - table.log_px).abs() < 4 * table.log_px_ais_std_err + 0.01).all()
    # Two noisy means over four images each.
    assert found.metrics["simulated/log_px_lower"] < found.metrics["simulated/log_px_upper"] + 1
    rows = table[table.split == "test"].set_index("index")
    known = Evaluation(model, digits, config).population("test").elbo
    slope, start = np.polyfit(known[rows.index], rows.approximation_gap, 1)
    assert found.metrics["test/approximation_gap"] == pytest.approx(start + slope * known.mean(), abs=1e-4)
    for split in ("train", "test"):
        assert found.metrics[f"{split}/ais_acceptance"] == pytest.approx(ACCEPTANCE, abs=0.15)


def test_without_chains_from_the_prior_the_gap_is_below_the_quoted_log_px(digits: Data):
    model = trained("vae", digits, latent_dim=3, net="mlp", hidden=8)
    values = {"images": 12, "gap_images": 12, "ais_distributions": 0, "local_steps": 20}
    evaluation = Evaluation(model, digits, EvaluateConfig.parse(values))
    quoted = likelihood(evaluation)
    found = gap(evaluation)
    table = found.files["gap.parquet"].set_index("index")
    for split in ("train", "test"):
        rows = table[table.split == split]
        own = quoted.files["likelihood.parquet"].query("split == @split and posterior == 'encoder'").set_index("index")
        assert rows.log_px.to_dict() == own.log_px.to_dict()
        # Of the same images by the same regression: what is quoted, and its parts, which add up.
        assert found.metrics[f"{split}/gap_log_px"] == pytest.approx(quoted.metrics[f"{split}/log_px"])
        parts = [found.metrics[f"{split}/{name}_gap"] for name in ("approximation", "amortization", "inference")]
        assert parts[0] + parts[1] == pytest.approx(parts[2])
        assert f"{split}/log_px_ais" not in found.metrics
    assert not [key for key in found.metrics if key.startswith("simulated/")]


def test_the_approximation_gap_shrinks_from_family_to_family(digits: Data):
    model = trained("vae", digits, latent_dim=6, net="mlp", hidden=32, activation="tanh", epochs=20)
    values = {"images": 12, "gap_images": 12, "samples": 2000, "ais_distributions": 0, "local_steps": 400}
    found = gap(Evaluation(model, digits, EvaluateConfig.parse({**values, "local_family": "all"})))
    table, quoted = found.files["gap.parquet"], found.metrics
    gaps = {name: table[f"approximation_gap_of_{name}"] for name in POSTERIORS}
    # The model's own family is one of them, and each that follows has the one before within it, from which it starts.
    pd.testing.assert_series_equal(gaps["diagonal"], table.approximation_gap, check_names=False)
    for narrow, wide in pairwise(POSTERIORS):
        assert (gaps[wide] < gaps[narrow] + 0.05).all()
        assert gaps[wide].mean() < gaps[narrow].mean() + 0.005
    # Of so small a net the posteriors are nearly Gaussian, but correlated.
    for split in ("train", "test"):
        of = {name: quoted[f"{split}/approximation_gap_of_{name}"] for name in POSTERIORS}
        assert -0.1 < of["flow"] < 0.8 * of["diagonal"]
        bounds = {name: quoted[f"{split}/elbo_best_of_{name}"] for name in POSTERIORS}
        assert bounds["full"] - bounds["diagonal"] == pytest.approx(of["diagonal"] - of["full"], abs=1e-3)
    # Nor is a wide family of the model's own behind a narrow one, however short the search.
    wide_model = trained("vae", digits, latent_dim=2, net="mlp", hidden=8, posterior="flow", epochs=2)
    short = {**values, "local_steps": 5, "local_family": "all"}
    found = gap(Evaluation(wide_model, digits, EvaluateConfig.parse(short))).files["gap.parquet"]
    for narrow, wide in pairwise(POSTERIORS):
        assert found[f"approximation_gap_of_{wide}"].mean() < found[f"approximation_gap_of_{narrow}"].mean() + 0.1
    alone = gap(Evaluation(model, digits, EvaluateConfig.parse(values)))
    assert alone.metrics["test/elbo_best"] == quoted["test/elbo_best"]
    assert not [key for key in alone.metrics if "_of_" in key]


def test_one_distribution_is_refused():
    with pytest.raises(UserError, match=r"ais_distributions.*should be 0 or at least 2"):
        EvaluateConfig.parse({"ais_distributions": 1})


def test_no_gap_is_measured_unless_asked_for(digits: Data):
    model = PPCA(PPCAConfig(dataset="mnist5k", latent_dim=4), DataSpec((1, 28, 28), 10, 64, 20, ""))
    found = gap(Evaluation(model, digits, EvaluateConfig(images=10)))
    assert (found.metrics, found.files) == ({}, {})
