"""Likelihoods and bounds against closed forms: a linear-Gaussian decoder has an exact answer to everything."""

import gc
import math
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import batch_of, linear_gaussian, trained
from scipy.stats import multivariate_normal
from torch import Tensor

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data, DataSpec
from elbolab.evaluation import Evaluation
from elbolab.evaluation.class_preservation import classes
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.likelihood import likelihood
from elbolab.evaluation.log_likelihood import LogLikelihood, estimate_log_px
from elbolab.evaluation.weights import bound, heavy_tailed, pareto_k, summarise
from elbolab.models.cnn import CNN
from elbolab.models.objectives import Terms, beta_loss, elbo, iw_bound
from elbolab.models.posteriors import DiagonalGaussian
from elbolab.models.ppca import PPCA, PPCAConfig, fit_ppca
from elbolab.models.priors.normal import StandardNormal
from elbolab.support.statistics import k_threshold


@pytest.mark.parametrize(("latent_dim", "sigma"), [(1, 0.4), (3, 0.1), (7, 1.0)])
def test_ppca_is_the_multivariate_normal(latent_dim: int, sigma: float):
    model, x = linear_gaussian(latent_dim, sigma)
    covariance = (model.loadings @ model.loadings.T).double() + sigma**2 * torch.eye(12, dtype=torch.float64)
    expected = multivariate_normal.logpdf(x.flatten(1).numpy(), model.mean.numpy(), covariance.numpy())  # pyright: ignore
    # Sums of single precision, some of which nearly cancel.
    np.testing.assert_allclose(model.exact_log_px(x).numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 3, 7])
def test_the_exact_posterior_makes_elbo_estimate_and_log_px_equal(latent_dim: int):
    model, x = linear_gaussian(latent_dim)
    exact = model.exact_log_px(x)
    terms = model.terms(batch_of(x), 5)
    # Every weight is p(x): the bound is tight at one sample, and so is its importance-weighted form at any number.
    torch.testing.assert_close(terms.log_w, exact.expand(5, 8), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(iw_bound(terms), exact, atol=1e-3, rtol=1e-4)
    estimate = importance_estimate(model, x, model.posterior(batch_of(x)), 50)
    torch.testing.assert_close(estimate.log_px.float(), exact, atol=1e-3, rtol=1e-4)
    assert estimate.std_err.max() < 1e-3
    torch.testing.assert_close(estimate.ess, torch.full_like(estimate.ess, 50), atol=1e-2, rtol=0)


def test_ppca_fit_is_the_maximum_likelihood():
    torch.manual_seed(0)
    x = torch.randn(400, 6) @ torch.randn(6, 6) + torch.rand(6)
    config = PPCAConfig(latent_dim=2, sigma=0.5)
    model = PPCA(config, DataSpec((1, 2, 3), 10, 400, 1, ""))

    def total(mean: Tensor, loadings: Tensor, sigma: float) -> float:
        model.mean, model.loadings = mean, loadings
        model.sigma.fill_(sigma)
        return model.exact_log_px(x.reshape(-1, 1, 2, 3)).sum().item()

    for fixed in (0.5, None):
        mean, loadings, sigma = fit_ppca(x, 2, fixed)
        assert fixed is None or sigma == fixed
        best = total(mean, loadings, sigma)
        for _ in range(20):
            moved = total(mean + 0.05 * torch.randn(6), loadings + 0.05 * torch.randn(6, 2), sigma)
            assert moved < best
        if fixed is None:
            assert max(total(mean, loadings, 0.97 * sigma), total(mean, loadings, 1.03 * sigma)) < best


@pytest.mark.parametrize(("latent_dim", "shape", "seed"), [(4, (1, 3, 4), 0), (4, (3, 4, 4), 1), (2, (1, 8, 8), 2)])
def test_bounds_rise_to_log_px_with_the_number_of_samples(latent_dim: int, shape: tuple[int, int, int], seed: int):
    model, x = linear_gaussian(latent_dim, shape=shape, seed=seed)
    q = model.posterior(batch_of(x))
    wrong = DiagonalGaussian(q.mean + 0.1, q.log_var + 0.6)
    generator = torch.Generator().manual_seed(seed)
    exact = model.exact_log_px(x).mean().item()
    means = [importance_estimate(model, x, wrong, 20000, generator).elbo.mean().item()]
    for samples in (4, 64):
        repeats = [importance_estimate(model, x, wrong, samples, generator).log_px for _ in range(300)]
        means.append(torch.stack(repeats).mean().item())
    assert means[0] < means[1] < means[2] < exact + 0.01
    assert means[2] == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(("latent_dim", "shape", "seed"), [(5, (1, 3, 4), 0), (2, (3, 4, 4), 1), (9, (1, 4, 4), 2)])
def test_a_known_defect_of_q_gives_the_known_gap(latent_dim: int, shape: tuple[int, int, int], seed: int):
    model, x = linear_gaussian(latent_dim, shape=shape, seed=seed)
    q = model.posterior(batch_of(x))
    shifted = DiagonalGaussian(q.mean + 0.2, q.log_var + math.log(1.5))
    # KL between two diagonal Gaussians.
    gap = 0.5 * (1.5 + 0.2**2 * (-q.log_var).exp() - 1 - math.log(1.5)).sum(-1)
    estimate = importance_estimate(model, x, shifted, 50000, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(estimate.elbo.float(), model.exact_log_px(x) - gap, atol=0.05, rtol=0)


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    model, x = linear_gaussian(4)
    q = model.posterior(batch_of(x))
    wide = DiagonalGaussian(q.mean, q.log_var + 0.5)
    generator = torch.Generator().manual_seed(0)
    repeats = [importance_estimate(model, x, wide, 500, generator) for _ in range(200)]
    spread = torch.stack([estimate.log_px for estimate in repeats]).std(0)
    claimed = torch.stack([estimate.std_err for estimate in repeats]).mean(0)
    torch.testing.assert_close(claimed, spread, rtol=0.2, atol=0)
    efficiency = torch.stack([estimate.ess for estimate in repeats]).mean() / 500
    # E[w]^2 / E[w^2] for each of four dimensions whose proposal has r = exp(0.5) times the variance.
    r = math.exp(0.5)
    assert efficiency.item() == pytest.approx((math.sqrt(2 * r - 1) / r) ** 4, rel=0.05)


def test_streaming_asks_for_the_samples_it_was_asked_for_and_bounds_what_is_decoded(monkeypatch: pytest.MonkeyPatch):
    model, x = linear_gaussian(3)
    decoded: list[int] = []
    decode = model.decode

    def counted(z: Tensor) -> Tensor:
        decoded.append(z.shape[0] * z.shape[1])
        return decode(z)

    monkeypatch.setattr(model, "decode", counted)
    for samples in (1, 99, 1000, 5001):
        decoded.clear()
        importance_estimate(model, x, model.posterior(batch_of(x)), samples)
        assert sum(decoded) == samples * len(x)
        assert max(decoded) <= model.decodes_at_once


def test_one_sample_is_the_elbo_and_its_error_is_not_known():
    model, x = linear_gaussian(3)
    estimate = importance_estimate(model, x, model.posterior(batch_of(x)), 1)
    assert torch.equal(estimate.log_px, estimate.elbo)
    assert estimate.std_err.isinf().all()


def test_far_images_do_not_underflow():
    model, x = linear_gaussian(3)
    estimate = importance_estimate(model, x + 1000, model.posterior(batch_of(x + 1000)), 10)
    torch.testing.assert_close(estimate.log_px.float(), model.exact_log_px(x + 1000), rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_shape_of_a_known_tail(k: float, seed: int):
    # If u is uniform, u^-k has a Pareto tail of shape k.
    uniform = torch.rand(20000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = pareto_k(-k * uniform.log())
    assert found.mean().item() == pytest.approx(k, abs=0.06)
    # With the sign the wrong way round the weights are bounded, and k is negative.
    assert (pareto_k(k * uniform.log()) < 0.1).all()


@pytest.mark.parametrize(("shape", "seed"), [((1, 8, 8), 0), ((1, 8, 8), 1), ((3, 5, 6), 2)])
@pytest.mark.parametrize(("scale", "reliable"), [(0.5, False), (1.2, True)])
def test_a_proposal_of_half_the_variance_is_told_from_one_that_covers_the_target(
    scale: float, reliable: bool, shape: tuple[int, int, int], seed: int
):
    # Each dimension's weights have a tail of shape 1 - scale, which is 0.5; it takes many for 5,000 samples to fail.
    model, x = linear_gaussian(50, shape=shape, seed=seed)
    q = model.posterior(batch_of(x))
    scaled = DiagonalGaussian(q.mean, q.log_var + math.log(scale))
    estimate = importance_estimate(model, x, scaled, 5000, torch.Generator().manual_seed(seed))
    assert estimate.log_w is not None
    k = pareto_k(estimate.log_w)
    assert (k < 0.7).all() if reliable else (k > 0.7).all()


def test_pareto_k_of_equal_and_of_few_weights():
    assert (pareto_k(torch.zeros(100, 2, dtype=torch.float64)) == -math.inf).all()
    assert (pareto_k(torch.randn(20, 2, dtype=torch.float64)) == math.inf).all()


@pytest.mark.parametrize("spread", [100.0, 300.0, 1000.0, 10_000.0])
def test_pareto_k_of_weights_that_are_worlds_apart_is_not_to_be_trusted(spread: float):
    log_w = spread * torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_w[0, 2] = math.nan
    assert (pareto_k(log_w) > 1).all()


def test_a_bound_at_fewer_samples_is_the_mean_over_groups_of_them():
    log_w = torch.randn(23, 4, dtype=torch.float64)
    torch.testing.assert_close(bound(log_w, 1), log_w.mean(0))
    torch.testing.assert_close(bound(log_w, 23), log_w.logsumexp(0) - math.log(23))
    groups = [log_w[:10].exp().mean(0).log(), log_w[10:20].exp().mean(0).log()]
    torch.testing.assert_close(bound(log_w, 10), torch.stack(groups).mean(0))


def test_objectives_are_what_their_equations_say():
    torch.manual_seed(0)
    log_px_z, log_pz, log_qz = torch.randn(3, 50, 4).unbind()
    terms = Terms(log_px_z, log_pz, log_qz, torch.rand(4))
    weights = (log_px_z + log_pz - log_qz).exp()
    torch.testing.assert_close(iw_bound(terms), weights.mean(0).log())
    torch.testing.assert_close(elbo(terms), log_px_z.mean(0) - terms.kl)
    # Jensen: the mean of logs is below the log of the mean.
    assert (terms.log_w.mean(0) < iw_bound(terms)).all()


def test_the_closed_form_kl_is_the_mean_of_its_samples():
    q = DiagonalGaussian(torch.randn(5, 3), torch.randn(5, 3))
    z = q.sample(100000, torch.Generator().manual_seed(0))
    prior = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    log_ratio = q.log_prob(z) - prior
    error = log_ratio.std(0) / math.sqrt(len(z))
    assert ((log_ratio.mean(0) - q.kl(StandardNormal(SimpleNamespace(latent_dim=3)))).abs() < 5 * error).all()


# The evaluators on a model


def test_likelihood_tables_hold_every_chosen_image_once(digits: Data):
    model = trained("latent_opt", digits, latent_dim=4, fit_steps=3)
    found = likelihood(Evaluation(model, digits, EvaluateConfig(samples=20, images=10, budget=1)))
    table = found.files["likelihood.parquet"]
    counts = table.groupby(["split", "posterior"]).size().to_dict()
    assert counts == {("train", "fitted"): 10, ("train", "table"): 10, ("val", "fitted"): 10, ("test", "fitted"): 10}
    for (_, _), part in table.groupby(["split", "posterior"]):
        assert part["index"].is_unique
        assert sorted(part.label) == list(range(10))
    test = table[table.split == "test"]
    assert found.metrics["test/log_px_evaluated"] == pytest.approx(test.log_px.mean())
    assert found.metrics["test/log_px_evaluated_se"] == pytest.approx(test.log_px.std() / math.sqrt(10))
    assert found.tags["evaluation.posterior"].startswith("fitted: 3 Adam steps")
    rows = table[table.posterior == "table"]
    # log p(x) is the model's, by whatever posterior it is found.
    assert found.metrics["train/posterior_elbo_table"] == pytest.approx(rows.elbo.mean())
    assert rows.log_px.isna().all()
    config = EvaluateConfig(method="importance", samples=20, images=10)
    less, more = (
        likelihood(Evaluation(model, digits, config.model_copy(update={"samples": samples}))) for samples in (20, 100)
    )
    rows = less.files["likelihood.parquet"].query("posterior == 'table'")
    # Twenty samples leave too short a tail for a k, so that none is trusted.
    assert less.metrics["train/log_px_table"] == pytest.approx(rows.log_px.mean())
    assert less.metrics["train/unreliable_table"] == (rows.pareto_k > k_threshold(20)).mean() == 1
    rows = more.files["likelihood.parquet"].query("posterior == 'table'")
    assert more.metrics["train/pareto_k_table"] == rows.pareto_k.median()
    assert more.metrics["train/unreliable_table"] == (rows.pareto_k > k_threshold(100)).mean()


@pytest.mark.parametrize("name", ["vae", "semi_amortized"])
def test_a_decoder_under_an_encoder_is_fitted_as_latent_opt_fits_an_image_without_a_row(digits: Data, name: str):
    model = trained(name, digits, latent_dim=3, net="mlp", hidden=8)
    latent_opt = trained("latent_opt", digits, latent_dim=3, net="mlp", hidden=8)
    latent_opt.decoder.load_state_dict(model.decoder.state_dict())
    evaluation = Evaluation(model, digits, EvaluateConfig(samples=100, images=10))
    (batch,) = evaluation.batches("test")
    (fitted,) = evaluation.fitted("test")
    expected = latent_opt.infer(batch, evaluation.generator("fitted posteriors"))
    assert torch.equal(fitted.rows, expected.rows)

    found = likelihood(evaluation)
    table = found.files["likelihood.parquet"].set_index("index").query("split == 'test'")
    own, other = table[table.posterior != "fitted"], table[table.posterior == "fitted"]
    assert len(own) == len(other) == 10
    assert other.log_px.isna().all()
    # The encoder was not trained; what is fitted is better, and no better than log p(x).
    assert own.elbo.mean() < other.elbo.mean() < own.log_px.mean()
    known = evaluation.population("test").elbo
    slope, start = np.polyfit(known[other.index], other.elbo, 1)
    assert found.metrics["test/fitted_posterior_elbo"] == pytest.approx(start + slope * known.mean())


@pytest.mark.parametrize("name", ["latent_opt", "ppca"])
def test_posteriors_that_are_no_encoder_s_are_not_fitted_again(digits: Data, name: str):
    model = trained(name, digits, latent_dim=3, **({"fit_steps": 2} if name == "latent_opt" else {}))
    found = likelihood(Evaluation(model, digits, EvaluateConfig(samples=50, images=10, budget=1)))
    table = found.files["likelihood.parquet"]
    assert table.query("split == 'test'").posterior.nunique() == 1
    assert not [key for key in found.metrics if "fitted" in key]


def test_the_curve_is_the_mean_bound_at_every_number_of_samples(digits: Data):
    model = trained("vae", digits, latent_dim=3, net="mlp", hidden=8)
    found = likelihood(Evaluation(model, digits, EvaluateConfig(method="importance", samples=5000, images=3)))
    curve = found.files["curve.parquet"].set_index(["split", "posterior", "samples"])
    # Of the posteriors fitted to the decoder only the ELBO is asked, by a hundred samples.
    assert len(curve) == 3 * 5 + 3
    for split, images in digits.splits.items():
        batch = images.batch(images.stratified(3, 0))
        own = curve.loc[(split, "encoder")]
        assert own.index.tolist() == [1, 10, 100, 1000, 5000]
        # Groups of groups: by Jensen's inequality it rises without noise.
        assert own.log_px.is_monotonic_increasing
        rows = found.files["likelihood.parquet"].query("split == @split and posterior == 'encoder'")
        assert own.log_px[1] == pytest.approx(rows.elbo.mean())
        assert own.log_px[5000] == pytest.approx(found.metrics[f"{split}/log_px_evaluated"])
        assert own.log_px_se[5000] == pytest.approx(found.metrics[f"{split}/log_px_evaluated_se"])
        generator = Evaluation(model, digits, EvaluateConfig()).generator(f"{split} samples")
        log_w = importance_estimate(model, batch.x, model.infer(batch), 5000, generator).log_w
        assert log_w is not None
        for samples in (10, 100, 1000):
            groups = log_w.unflatten(0, (-1, samples)).exp().mean(1).log()
            assert own.log_px[samples] == pytest.approx(groups.mean().item())
    fewer = likelihood(Evaluation(model, digits, EvaluateConfig(method="importance", samples=150, images=3)))
    curve = fewer.files["curve.parquet"].set_index(["split", "posterior", "samples"])
    for split in digits.splits:
        own = curve.loc[(split, "encoder")]
        assert own.index.tolist() == [1, 10, 100, 150]
        assert own.log_px[150] == pytest.approx(fewer.metrics[f"{split}/log_px_evaluated"])


@pytest.mark.parametrize(("latent_dim", "seed"), [(4, 0), (10, 1), (20, 2)])
def test_sampling_from_a_somewhat_wrong_q_gives_the_exact_row_of_a_fitted_ppca(
    digits: Data, latent_dim: int, seed: int
):
    model = trained("ppca", digits, latent_dim=latent_dim)
    row = likelihood(Evaluation(model, digits, EvaluateConfig(images="all"))).metrics
    for split, images in digits.splits.items():
        batch = images.batch(torch.arange(len(images)))
        q = model.posterior(batch)
        wrong = DiagonalGaussian(q.mean + 0.2 * (0.5 * q.log_var).exp(), q.log_var + 0.2)
        found = importance_estimate(model, batch.x, wrong, 2000, torch.Generator().manual_seed(seed))
        error = found.std_err.square().sum().sqrt() / len(images)
        assert abs(found.log_px.mean() - row[f"{split}/log_px"]) < 3 * error < 0.1
        assert found.elbo.mean() < row[f"{split}/log_px"] - 0.1


def test_every_model_is_evaluated_on_the_same_images(digits: Data):
    config = EvaluateConfig(samples=5, images=10, budget=1)
    tables = [
        likelihood(Evaluation(trained(name, digits, latent_dim=4), digits, config))
        .files["likelihood.parquet"]
        .query("posterior == @own", local_dict={"own": own})
        .reset_index()
        for name, own in (("vae", "encoder"), ("ppca", "exact"))
    ]
    assert tables[0]["index"].equals(tables[1]["index"])
    assert tables[0].log_px_constant.equals(tables[1].log_px_constant)


def test_all_images_can_be_evaluated(digits: Data):
    found = likelihood(Evaluation(trained("ppca", digits, latent_dim=4), digits, EvaluateConfig(images="all")))
    table = found.files["likelihood.parquet"]
    assert table.groupby("split").size().to_dict() == {"train": 64, "val": 20, "test": 20}
    # The exact row has no importance noise and no sample size.
    assert (table.std_err == 0).all()
    assert "test/ess" not in found.metrics


def test_an_evaluation_that_takes_long_says_how_far_it_is(
    digits: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model, config = trained("vae", digits, latent_dim=4), EvaluateConfig(samples=20, images=10, budget=1)
    likelihood(Evaluation(model, digits, config))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("elbolab.support.counters.SECONDS_A_LINE", -1)
    monkeypatch.setitem(likelihood.__globals__, "WEIGHTS_AT_ONCE", 80)
    likelihood(Evaluation(model, digits, config))
    told = [line.rpartition(",")[0] for line in capsys.readouterr().err.splitlines()]
    estimates = [f"{split} log p(x): {done} of 10 images" for split in digits.splits for done in (4, 8, 10)]
    simulated = ["log p(x) of simulated images: 20 of 20 images"]
    everything = [
        f"{split} ELBO of all images: {len(part)} of {len(part)} images" for split, part in digits.splits.items()
    ]
    assert sorted(told) == sorted([*estimates, *simulated, *everything])


def test_nothing_keeps_a_model_after_its_evaluation(digits: Data):
    model = trained("vae", digits, latent_dim=4)
    likelihood(Evaluation(model, digits, EvaluateConfig(samples=2, images=2, budget=1)))
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_the_weights_in_memory_are_bounded_whatever_the_number_of_samples(
    digits: Data, monkeypatch: pytest.MonkeyPatch
):
    model, config = trained("ppca", digits, latent_dim=4), EvaluateConfig(samples=20)
    whole = likelihood(Evaluation(model, digits, config))
    seen: list[int] = []

    def estimate(model: Any, x: Tensor, q: DiagonalGaussian, config: EvaluateConfig, *more: Any) -> LogLikelihood:
        seen.append(len(x) * config.samples)
        return estimate_log_px(model, x, q, config, *more)

    monkeypatch.setitem(likelihood.__globals__, "estimate_log_px", estimate)
    monkeypatch.setitem(likelihood.__globals__, "WEIGHTS_AT_ONCE", 150)
    parts = likelihood(Evaluation(model, digits, config))
    assert max(seen) == 140
    pd.testing.assert_frame_equal(parts.files["likelihood.parquet"], whole.files["likelihood.parquet"], rtol=1e-5)


def test_the_constant_image_is_the_mean_training_image(digits: Data):
    found = likelihood(Evaluation(trained("ppca", digits, latent_dim=4), digits, EvaluateConfig(images="all")))
    mean = digits.train.images.double().mean(0) / 255
    x = digits.test.images.double() / 255
    distance = (x - mean).square().sum((1, 2, 3)) / (2 * 0.16)
    expected = -(distance + 784 * math.log(0.4 * math.sqrt(2 * math.pi))).mean().item()
    assert found.metrics["test/log_px_constant"] == pytest.approx(expected, rel=1e-5)


def test_a_perfect_reconstruction_keeps_every_class(digits: Data, monkeypatch: pytest.MonkeyPatch):
    model, cnn = trained("ppca", digits, latent_dim=4), trained("cnn", digits)
    assert isinstance(cnn, CNN)
    evaluation = Evaluation(model, digits, EvaluateConfig(images="all"), ("judge", cnn))
    blurred = classes(evaluation)
    originals = {id(q): batch.x for split in digits.splits for batch, q in _pairs(evaluation, split)}
    monkeypatch.setattr(model, "reconstruct", lambda q: originals.get(id(q), torch.zeros(10, 1, 28, 28)))
    perfect = classes(evaluation)
    for split, images in digits.splits.items():
        assert perfect.metrics[f"{split}/class_preservation"] == 1
        confusion = np.array(perfect.files["classes.json"]["splits"][split]["confusion"])
        assert confusion.sum() == np.trace(confusion) == len(images)
        assert perfect.metrics[f"{split}/accuracy_original"] == perfect.metrics[f"{split}/accuracy_reconstruction"]
    assert np.array(blurred.files["classes.json"]["splits"]["test"]["confusion"]).sum() == len(digits.test)
    accuracy = classes(Evaluation(cnn, digits, EvaluateConfig())).metrics["test/accuracy"]
    assert perfect.tags == {"evaluation.cnn_run": "judge", "evaluation.cnn_test_accuracy": str(accuracy)}
    assert [digit["label"] for digit in perfect.files["classes.json"]["ten"]["train"]] == list(range(10))


def test_a_classifier_judges_what_the_model_saw(digits: Data, monkeypatch: pytest.MonkeyPatch):
    def binary(_: CNN, x: Tensor) -> Tensor:
        is_binary = ((x == 0) | (x == 1)).flatten(1).all(1)
        return torch.nn.functional.one_hot(is_binary.long(), 2)

    monkeypatch.setattr(CNN, "logits", binary)
    model = trained("vae", digits, latent_dim=4, likelihood="bernoulli")
    found = classes(Evaluation(model, digits, EvaluateConfig(images=10), ("judge", trained("cnn", digits))))
    # Reconstructions are not binary, whether the posteriors are the encoder's or fitted to the decoder.
    kept = {key: value for key, value in found.metrics.items() if key.endswith("class_preservation")}
    assert kept.keys() == {f"{name}class_preservation" for name in ("train/", "val/", "test/", "test/fitted_")}
    assert set(kept.values()) == {0.0}
    described = found.files["classes.json"]
    assert np.array(described["splits"]["test"]["confusion"])[1].tolist() == [10, *[0] * 9]
    for digit in (*described["ten"]["train"], *described["ten"]["val"]):
        assert (digit["original"], digit["reconstruction"]) == (1, 0)


def _pairs(evaluation: Evaluation, split: str) -> Any:
    return zip(evaluation.batches(split), evaluation.inferred(split), strict=True)


def test_a_classifier_is_counted_on_every_image(digits: Data):
    cnn = trained("cnn", digits)
    found = classes(Evaluation(cnn, digits, EvaluateConfig(images=1)))
    confusion = np.array(found.files["classes.json"]["splits"]["test"]["confusion"])
    assert confusion.sum(1).tolist() == torch.bincount(digits.test.labels, minlength=10).tolist()
    assert found.metrics["test/accuracy"] == pytest.approx(np.trace(confusion) / 20)


def test_the_loss_of_several_samples_is_that_of_their_mean():
    generator = torch.Generator().manual_seed(0)
    log_px_z, log_pz, log_qz = (torch.randn(3, 5, generator=generator) for _ in range(3))
    terms = Terms(log_px_z, log_pz, log_qz, torch.rand(5, generator=generator))
    torch.testing.assert_close(beta_loss(terms), -elbo(terms).mean())
    torch.testing.assert_close(beta_loss(terms, 3.0) - beta_loss(terms, 1.0), 2 * terms.kl.mean())


def test_an_image_of_few_large_weights_is_heavy_tailed():
    generator = torch.Generator().manual_seed(0)
    # Weights u^-1 have a tail of k = 1, those of small variance none.
    heavy = -torch.rand(1000, generator=generator, dtype=torch.float64).log()
    light = 0.1 * torch.randn(1000, generator=generator, dtype=torch.float64)
    assert heavy_tailed(summarise(torch.stack([heavy, light], 1))).tolist() == [True, False]
