"""Intervals and errors against closed forms and published values."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from elbolab.support.statistics import (
    accuracy,
    auroc,
    bootstrap,
    is_heavy_tailed,
    is_unreliable,
    k_threshold,
    mean_and_half_width,
    mean_se,
    paired,
    wilson,
)


def test_the_interval_is_students():
    # n = 2: t = 12.706 and the standard error is half the distance.
    mean, half = mean_and_half_width([1.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(12.7062, rel=1e-4)


def test_a_standard_error_is_the_deviation_over_the_root_of_the_number():
    values = [1.0, 2.0, 4.0, 9.0]
    mean, error = mean_se(iter(values))
    assert mean == 4
    assert error == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3 / 4))
    assert mean_se([5.0])[0] == 5
    assert math.isnan(mean_se([5.0])[1])
    assert all(map(math.isnan, mean_se([])))


@pytest.mark.parametrize(("count", "images"), [(0, 10), (10, 10), (7, 10), (99, 100)])
def test_the_interval_of_a_share_is_wilsons(count: int, images: int):
    z, rate = norm.ppf(0.975), count / images
    centre = (rate + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(rate * (1 - rate) / images + z**2 / (4 * images**2))
    assert wilson(count, images) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_accuracy_is_the_diagonals_share():
    rate, error, images = accuracy([[3, 1], [0, 6]])
    assert (rate, images) == (0.9, 10)
    assert error == pytest.approx(math.sqrt(0.9 * 0.1 / 10))
    assert accuracy([[0, 0], [0, 0]])[2] == 0
    assert all(map(math.isnan, accuracy([[0, 0], [0, 0]])[:2]))


def test_more_weights_bear_heavier_tails():
    # Vehtari et al. 2024, section 3.2.
    assert k_threshold(1) == -math.inf
    assert k_threshold(100) == pytest.approx(0.5)
    assert k_threshold(1000) == pytest.approx(2 / 3)
    assert k_threshold(10**6) == 0.7
    assert is_heavy_tailed(np.array([0.49, 0.5, 0.51]), 100).tolist() == [False, False, True]
    assert [is_unreliable(share) for share in (0.5, 0.51)] == [False, True]


def test_a_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 4000)
    mean, error = mean_se(values)
    assert bootstrap(values) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(np.array([7.0])) == (7.0, 7.0)


def test_pairs_are_of_the_images_that_both_have():
    found = paired({1: 5.0, 2: 7.0, 3: 1.0, 9: 0.0}, {1: 4.0, 2: 6.0, 3: 3.0, 8: 9.0})
    assert found is not None
    assert (found.images, found.mean) == (3, 0)
    assert (found.above, found.below) == (2 / 3, 1 / 3)
    assert (found.low, found.high) == (-2, 1)
    assert paired({1: 5.0, 2: 1.0}, {1: 4.0}) is None


@pytest.mark.parametrize("step", [1e-9, 0.5, 2.0])
def test_auroc_is_the_share_of_pairs_in_order_ties_counted_half(step: float):
    rng = np.random.default_rng(0)
    own, other = np.round(rng.normal(0.7, 1, 40) / step), np.round(rng.normal(0, 1.5, 31) / step)
    pairs = (other[:, None] < own) + 0.5 * (other[:, None] == own)
    area, error = auroc(own, other)
    assert area == pytest.approx(pairs.mean(), abs=1e-12)
    # DeLong et al. 1988, from the components of each image.
    parts = [pairs.mean(axis).var(ddof=1) / pairs.shape[1 - axis] for axis in (0, 1)]
    assert error == pytest.approx(math.sqrt(sum(parts)), abs=1e-12)
    back, same = auroc(other, own)
    assert (back, same) == pytest.approx((1 - area, error), abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.5])
def test_auroc_of_two_normals_and_the_spread_of_its_estimates(distance: float):
    rng = np.random.default_rng(1)
    found = np.array([auroc(rng.normal(distance, 1, 80), rng.normal(0, 1, 120)) for _ in range(2000)])
    areas, errors = found.T
    assert areas.mean() == pytest.approx(norm.cdf(distance / math.sqrt(2)), abs=4 * areas.std() / math.sqrt(2000))
    # The standard deviation of 2,000 estimates is known to 1.6 %, and the error is that of a large sample.
    assert math.sqrt((errors**2).mean()) == pytest.approx(areas.std(), rel=0.07)


def test_auroc_of_scores_that_do_not_overlap_and_of_one():
    assert auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == (1, 0)
    assert auroc(np.zeros(5), np.zeros(3)) == (0.5, 0)
    area, error = auroc(np.array([1.0]), np.array([0.0, 1.0]))
    assert area == 0.75
    assert math.isnan(error)
    assert auroc(np.array([0.0, -np.inf]), np.array([-np.inf, -np.inf]))[0] == 0.75
