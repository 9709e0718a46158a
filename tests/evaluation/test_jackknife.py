"""Jackknife variational inference: identities against its definition, and the order of its bias where p(x) is known."""

import math
from itertools import combinations

import pytest
import torch
from conftest import batch_of, linear_gaussian, trained
from torch import Tensor

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data
from elbolab.evaluation import Evaluation
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.likelihood import likelihood
from elbolab.evaluation.weights import jackknife
from elbolab.models.posteriors import DiagonalGaussian


def by_definition(log_w: Tensor, order: int) -> Tensor:
    """The sum over all choices of K - j of the K weights, as the paper writes it."""
    count, total = len(log_w), torch.zeros_like(log_w[0])
    for left_out in range(order + 1):
        kept = count - left_out
        choices = [log_w[list(rows)].logsumexp(0) - math.log(kept) for rows in combinations(range(count), kept)]
        share = (-1) ** left_out * kept**order / (math.factorial(order - left_out) * math.factorial(left_out))
        total += share * torch.stack(choices).mean(0)
    return total


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("count", "spread"), [(3, 1.0), (7, 1.0), (12, 4.0), (6, 400.0)])
def test_it_is_the_sum_over_all_choices_of_the_weights(count: int, order: int, spread: float):
    log_w = spread * torch.randn(count, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    torch.testing.assert_close(jackknife(log_w, order), by_definition(log_w, order), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_equal_weights_are_left_as_they_are_and_a_factor_goes_through(order: int):
    equal = torch.full((50, 1), -87.5, dtype=torch.float64)
    torch.testing.assert_close(jackknife(equal, order), equal[0], rtol=1e-10, atol=0)
    log_w = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(jackknife(log_w - 87.5, order), jackknife(log_w, order) - 87.5, rtol=1e-9, atol=1e-9)


def test_its_bias_falls_by_one_more_order_of_the_number_of_samples():
    model, x = linear_gaussian(1)
    q = model.posterior(batch_of(x))
    # As wide as the posterior, so that weights are log-normal; of variance exp(0.8^2) - 1 about p(x).
    shifted = DiagonalGaussian(q.mean + 0.8 * (0.5 * q.log_var).exp(), q.log_var)
    exact, variance = model.exact_log_px(x).double(), math.expm1(0.8**2)
    generator, groups = torch.Generator().manual_seed(0), 20_000
    biases, errors = {}, {}
    for count in (4, 8):
        log_w = (log_weights(model, x, shifted, count * groups, generator) - exact).reshape(count, -1)
        mean = log_w.exp().mean(0) - 1
        # Of known expectation, and much of the noise.
        known = torch.stack([mean, mean.square() - variance / count])
        estimates = {0: log_w.logsumexp(0) - math.log(count)} | {n: jackknife(log_w, n) for n in (1, 2)}
        for order, estimate in estimates.items():
            covariance = torch.cov(torch.cat([known, estimate[None]]))
            slopes = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
            values = estimate - slopes @ known
            biases[order, count] = values.mean().item()
            errors[order, count] = values.std().item() / math.sqrt(len(values))
    # All are too low here; by 2, 4 and 8 times less for twice as many samples in the limit.
    for order, at_least in ((0, 1.7), (1, 2.5), (2, 3.5)):
        assert biases[order, 4] < at_least * biases[order, 8] < 0
        assert biases[order, 8] < -3 * errors[order, 8]
    for count in (4, 8):
        assert biases[0, count] < 4 * biases[1, count] < 8 * biases[2, count]


def test_it_is_of_the_first_samples_of_q_of_which_the_curve_is(digits: Data):
    model = trained("vae", digits, latent_dim=3, net="mlp", hidden=8)
    evaluation = Evaluation(model, digits, EvaluateConfig(samples=50, images=10))
    found = likelihood(evaluation)
    rows = found.files["likelihood.parquet"].query("split == 'test' and posterior == 'encoder'").set_index("index")
    (batch,) = evaluation.batches("test")
    log_w = log_weights(model, batch.x, model.infer(batch), 50, evaluation.generator("test samples"))
    for order in (1, 2):
        expected = dict(zip(batch.index.tolist(), jackknife(log_w, order).tolist(), strict=True))
        assert rows[f"jvi_{order}"].to_dict() == pytest.approx(expected)
        assert rows.elbo.mean() < rows[f"jvi_{order}"].mean()
        assert abs(found.metrics[f"test/jvi_{order}"] - found.metrics["test/log_px"]) < 0.2
    exact = likelihood(Evaluation(trained("ppca", digits, latent_dim=3), digits, EvaluateConfig(images=10)))
    assert not [key for key in exact.metrics if "jvi" in key]
