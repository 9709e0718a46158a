"""Distances between samples and images, against closed forms and the definitions written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import trained
from scipy.linalg import sqrtm

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data
from elbolab.evaluation import Evaluation
from elbolab.evaluation.sample_quality import compare_features, fidelity, frechet_distance, kernel_distance, prdc
from elbolab.models.cnn import CNN


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identical_sets_are_as_alike_as_can_be():
    found = compare_features(normal(60, 8), normal(60, 8), 0)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["kid"] == pytest.approx(0, abs=4 * found["kid_se"])
    assert [found[key] for key in ("precision", "recall", "density", "coverage")] == [1, 1, 1, 1]


def test_far_sets_share_nothing():
    found = compare_features(normal(60, 8), normal(60, 8) + 100, 0)
    assert [found[key] for key in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]
    assert found["kid"] > 100
    assert found["frechet_distance"] == pytest.approx(8 * 100**2, rel=1e-6)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    one, other = normal(3, 3, seed=1), normal(3, 3, seed=2)
    shift = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    real, fake = normal(40000, 3, seed=3) @ one, normal(40000, 3, seed=4) @ other + shift
    first, second = (matrix.T @ matrix for matrix in (one, other))
    cross = np.real(sqrtm((first @ second).numpy()))
    expected = (shift.square().sum() + first.trace() + second.trace()).item() - 2 * np.trace(cross)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=0.03)


def test_kernel_distance_is_unbiased_and_its_error_is_the_spread_of_repeats():
    equal = [kernel_distance(normal(80, 4, seed=2 * i), normal(80, 4, seed=2 * i + 1), 0) for i in range(60)]
    values, errors = np.array(equal).T
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(60)
    apart = [kernel_distance(normal(80, 4, seed=2 * i), normal(80, 4, seed=2 * i + 1) + 1, 0) for i in range(60)]
    values, errors = np.array(apart).T
    # For x ~ N(0, I), y ~ N(1, I) in four dimensions: E(x.x'/4 + 1)^3 = 1 + 3/4, and so on for the other two terms.
    assert values.mean() == pytest.approx(_kernel(0, 0) + _kernel(1, 1) - 2 * _kernel(0, 1), abs=4 * values.std() / 7)
    assert errors.mean() == pytest.approx(values.std(), rel=0.3)
    state = torch.random.get_rng_state()
    assert kernel_distance(normal(80, 4), normal(80, 4, seed=1), 5) == kernel_distance(
        normal(80, 4), normal(80, 4, seed=1), 5
    )
    assert torch.equal(torch.random.get_rng_state(), state)


def _kernel(one: float, other: float) -> float:
    """E[(x.y / 4 + 1)^3] of independent x ~ N(one, I), y ~ N(other, I) in four dimensions, by its moments."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    products = np.outer(nodes + one, nodes + other).ravel()
    both = np.outer(weights, weights).ravel()
    m1, m2, m3 = (float((both * products**power).sum()) for power in (1, 2, 3))
    # Moments of a sum of four independent products.
    variance, skew = m2 - m1**2, m3 - 3 * m1 * m2 + 2 * m1**3
    mean, second, third = 4 * m1, 4 * variance + (4 * m1) ** 2, 4 * skew + 3 * 4 * m1 * 4 * variance + (4 * m1) ** 3
    return third / 64 + 3 * second / 16 + 3 * mean / 4 + 1


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_density_coverage_are_their_definitions(seed: int):
    real, other, k = normal(40, 3, seed=seed), 0.8 * normal(30, 3, seed=seed + 10) + 0.5, 3

    def radius(points: torch.Tensor, i: int) -> float:
        return sorted((points[i] - points[j]).norm().item() for j in range(len(points)) if j != i)[k - 1]

    real_radii, other_radii = ([radius(points, i) for i in range(len(points))] for points in (real, other))
    inside = np.array([[(y - x).norm().item() < r for x, r in zip(real, real_radii, strict=True)] for y in other])
    found = prdc(real, other, k)
    assert found["precision"] == pytest.approx(inside.any(1).mean())
    assert found["density"] == pytest.approx(inside.sum() / (k * 30))
    assert found["coverage"] == pytest.approx(inside.any(0).mean())
    recalled = [any((x - y).norm().item() < r for y, r in zip(other, other_radii, strict=True)) for x in real]
    assert found["recall"] == pytest.approx(np.mean(recalled))


def test_one_sample_for_all_is_precise_and_recalls_nothing():
    real = normal(60, 8)
    found = prdc(real, real[:1].expand(60, 8))
    assert found["precision"] == 1
    assert found["recall"] == 0
    assert found["coverage"] < 0.5


def test_an_untrained_decoder_is_farther_than_real_images_are(digits: Data):
    cnn: Any = trained("cnn", digits)
    assert isinstance(cnn, CNN)
    x = digits.test.batch(torch.arange(20)).x
    torch.testing.assert_close(cnn.net[-1](cnn.features(x)), cnn.logits(x))
    evaluation = Evaluation(trained("vae", digits, latent_dim=4), digits, EvaluateConfig(images="all"), ("judge", cnn))
    found = fidelity(evaluation).metrics
    assert found["test/frechet_distance"] > 2 * found["test/frechet_distance_floor"]
    assert found["test/kid"] - found["test/kid_floor"] > 4 * found["test/kid_se"]
    for key in ("precision", "recall", "density", "coverage"):
        assert found[f"test/{key}"] < found[f"test/{key}_floor"]
    assert found == fidelity(evaluation).metrics


def test_without_a_classifier_or_neighbours_nothing_is_found(digits: Data):
    model: Any = trained("vae", digits, latent_dim=4)
    assert fidelity(Evaluation(model, digits, EvaluateConfig())).metrics == {}
    cnn: Any = trained("cnn", digits)
    assert fidelity(Evaluation(model, digits, EvaluateConfig(images=5), ("judge", cnn))).metrics == {}
