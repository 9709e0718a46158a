"""The discretised logistic: its probabilities sum to 1 and are stable; draws, mean and information are theirs."""

import math

import numpy as np
import pytest
import torch
from conftest import make_likelihood
from torch import Tensor

LIKELIHOOD = make_likelihood("discretised_logistic")
VALUES = torch.arange(256) / 255
LOCATIONS = [-1e4, -3.0, -0.3, 0.0, 1 / 255, 0.37, 0.5, 1.0, 1.2, 60.0]
LOG_SCALES = [-4.5, -3.0, -1.0, 0.0]
GRID = [(location, log_scale) for location in LOCATIONS for log_scale in LOG_SCALES]


def log_probs(params: Tensor) -> Tensor:
    """log P of each of the 256 values by the parameters of one pixel, (2,) to (256,)."""
    x = (torch.arange(256, dtype=params.dtype) / 255).view(256, 1, 1, 1)
    return LIKELIHOOD.log_prob(x, params.view(2, 1, 1).expand(256, 2, 1, 1))


@pytest.mark.parametrize(("location", "log_scale"), GRID)
def test_probabilities_sum_to_one_and_are_differences_of_the_distribution_function(location: float, log_scale: float):
    exact = log_probs(torch.tensor([location, log_scale], dtype=torch.float64))
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-7)
    assert log_probs(torch.tensor([location, log_scale])).exp().sum().item() == pytest.approx(1, abs=1e-5)
    scale = math.exp(log_scale)
    edges = torch.tensor([-math.inf, *((k + 0.5) / 255 for k in range(255)), math.inf], dtype=torch.float64)
    expected = ((edges - location) / scale).sigmoid().diff()
    torch.testing.assert_close(exact.exp(), expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("location", "log_scale"), [*GRID, (1e30, -4.5), (-1e30, 0.0)])
def test_values_and_gradients_are_finite_and_those_of_double_precision(location: float, log_scale: float):
    found = []
    for dtype in (torch.float32, torch.float64):
        params = torch.tensor([location, log_scale], dtype=dtype, requires_grad=True)
        values = log_probs(params)
        slopes = torch.stack([torch.autograd.grad(value, params, retain_graph=True)[0] for value in values[::51]])
        found.append((values.detach().double(), slopes.double()))
    (values, slopes), (exact, exact_slopes) = found
    assert values.isfinite().all()
    assert slopes.isfinite().all()
    torch.testing.assert_close(values, exact, atol=2e-5, rtol=2e-6)
    torch.testing.assert_close(slopes, exact_slopes, atol=2e-4, rtol=2e-4)


def test_activations_stand_for_parameters_within_the_bounds():
    activations = torch.tensor([0.0, 0.0, 3.0, 1e30, -1e30, -1e30]).view(3, 2, 1, 1)
    location, log_scale = LIKELIHOOD.params(activations).unbind(1)
    torch.testing.assert_close(location.flatten(), torch.tensor([0.5, 3.5, -1e30]))
    torch.testing.assert_close(log_scale.flatten(), torch.tensor([-2.25, 0.0, -4.5]))


def test_draws_have_these_probabilities():
    count = 50_000
    for location, log_scale in ((0.002, -4.0), (0.5, -2.0), (1.1, -1.0), (-5.0, -3.0)):
        params = torch.tensor([location, log_scale]).view(2, 1, 1)
        x = LIKELIHOOD.sample(params.expand(count, 2, 1, 1), torch.Generator().manual_seed(0))
        assert x.shape == (count, 1, 1, 1)
        # Exactly the values that pixels of a dataset are.
        assert torch.isin(x, VALUES).all()
        share = torch.bincount((255 * x).round().long().flatten(), minlength=256) / count
        expected = log_probs(params.flatten().double()).exp()
        assert ((share - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


def test_pixels_of_a_dataset_are_observed_as_they_are_and_others_rounded():
    assert torch.equal(LIKELIHOOD.observe(torch.arange(256).float().div_(255)), VALUES)
    assert torch.isin(LIKELIHOOD.observe(torch.rand(1000)), VALUES).all()


@pytest.mark.parametrize(("location", "log_scale"), [pair for pair in GRID if -4 < pair[0] < 4])
def test_the_mean_and_the_fisher_information_are_those_of_all_256_values(location: float, log_scale: float):
    """In the parameters: sum over the values of P (d log P)^2."""
    params = torch.tensor([location, log_scale], dtype=torch.float64, requires_grad=True)
    log_prob = log_probs(params)
    slopes = torch.stack([torch.autograd.grad(value, params, retain_graph=True)[0] for value in log_prob])
    probability, params = log_prob.detach().exp(), params.detach()
    exact = (probability[:, None] * slopes.square()).sum(0)
    for dtype in (torch.float64, torch.float32):
        given = params.to(dtype).view(2, 1, 1)
        of_location, of_scale = LIKELIHOOD.fisher(given).flatten().double()
        torch.testing.assert_close(of_location, exact[0], rtol=4.3e-3, atol=1e-4)
        torch.testing.assert_close(of_scale, exact[1], rtol=0, atol=1e-2)
        mean = (probability * VALUES).sum().item()
        assert LIKELIHOOD.mean(given).item() == pytest.approx(mean, abs=1.5e-5)


def test_colours_have_parameters_of_their_own():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.integers(0, 256, (4, 3, 2, 5))).float() / 255
    params = LIKELIHOOD.params(torch.from_numpy(random.normal(size=(7, 4, 6, 2, 5))).float())
    whole = LIKELIHOOD.log_prob(x, params)
    assert whole.shape == (7, 4)
    parts = [LIKELIHOOD.log_prob(x[:, [c]], params[..., [c, 3 + c], :, :]) for c in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0))
