"""How alike decoded samples and test images are to the suite's own classifier, beside how alike real images are."""

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from elbolab.evaluation import metrics as m
from elbolab.evaluation.base import IMAGES_AT_ONCE, Evaluation, Results
from elbolab.models.cnn import CNN
from elbolab.models.latent import LatentModel
from elbolab.support.random_streams import own_stream

NEIGHBOURS = 5
SUBSETS, MOST_IN_SUBSET = 100, 500


class Precomputed(nn.Identity):
    """What torchmetrics takes for a feature extractor: here the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features: int = num_features


def fidelity(evaluation: Evaluation) -> Results:
    """Distances of as many expected images at draws from the prior as test images are evaluated, from these images.

    Features are the classifier's penultimate activations: without one, or with so few images that they have not five
    neighbours, nothing is found. ``_floor`` is of as many training images against the same test images.
    """
    model, data = evaluation.model, evaluation.data
    if not isinstance(model, LatentModel) or evaluation.classifier is None:
        return Results()
    cnn, seed = evaluation.classifier[1], evaluation.config.seed
    count = min(len(data.train), len(data.test))
    count = count if evaluation.config.images == "all" else min(count, evaluation.config.images)
    if count <= NEIGHBOURS:
        return Results()
    drawn = model.prior.sample((count,), torch.Generator().manual_seed(seed))
    samples = _features(cnn, (model.expected(z) for z in drawn.split(IMAGES_AT_ONCE)))
    train, test = (
        _features(cnn, (split.batch(rows).x for rows in split.stratified(count, seed).split(IMAGES_AT_ONCE)))
        for split in (data.train, data.test)
    )
    found, real = (compare_features(test, other, seed) for other in (samples, train))
    metrics: dict[str, float] = {}
    for metric in m.FIDELITY:
        for name, again in zip(metric.names, m.REAL_IMAGES[metric].names, strict=True):
            metrics |= {f"{m.TEST}/{name}": found[name], f"{m.TEST}/{again}": real[name]}
    return Results(metrics)


@torch.no_grad()
def _features(cnn: CNN, images: Iterable[Tensor]) -> Tensor:
    return torch.cat([cnn.features(x) for x in images]).cpu().double()


def compare_features(real: Tensor, other: Tensor, seed: int) -> dict[str, float]:
    """Every distance of ``other`` (N, F) from ``real`` (N, F), by the names of its metric and of that one's error."""
    kid = dict(zip(m.KID.names, kernel_distance(real, other, seed), strict=True))
    return {m.FRECHET_DISTANCE.name: frechet_distance(real, other)} | kid | prdc(real, other)


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the features' means and covariances (Heusel et al. 2017, eq. 6).

    Biased upwards by so many images' noise, the more the fewer they are: compare equal counts only.
    """
    # The package takes seconds to import.
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(Precomputed(real.shape[1]))
    metric.update(real, real=True)
    metric.update(other, real=False)
    return metric.compute().item()


def kernel_distance(real: Tensor, other: Tensor, seed: int) -> tuple[float, float]:
    """The squared maximum mean discrepancy under the kernel (x.y / F + 1)^3, unbiased, and its standard error.

    The mean over 100 random subsets of m of the N features (Binkowski et al. 2018), where m is half of them, at
    most 500. The error is the delete-(N - m) jackknife's, sqrt(m / (N - m)) standard deviations over the
    subsets (Shao & Wu 1989), which is too large where both are of one distribution.
    """
    # The package takes seconds to import.
    from torchmetrics.image.kid import KernelInceptionDistance

    count = min(len(real), len(other))
    size = min(count // 2, MOST_IN_SUBSET)
    with warnings.catch_warnings(), own_stream():
        warnings.filterwarnings("ignore", ".*save all extracted features")
        metric = KernelInceptionDistance(Precomputed(real.shape[1]), subsets=SUBSETS, subset_size=size)
        metric.update(real, real=True)
        metric.update(other, real=False)
        # The subsets are drawn from torch's own stream.
        torch.manual_seed(seed)
        mean, spread = metric.compute()
    return mean.item(), math.sqrt(size / (count - size)) * spread.item()


def prdc(real: Tensor, other: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 2), density and coverage (Naeem et al. 2020).

    Every point has an open ball that reaches to its k-th nearest neighbour in its own set. Precision is the share of
    ``other`` in any ball of ``real``, recall the share of ``real`` in any ball of ``other``, density the mean number
    of balls of ``real`` around a point of ``other`` over k, coverage the share of balls of ``real`` with any point of
    ``other`` in them.
    """
    real_radii, other_radii = (_radii(points, neighbours) for points in (real, other))
    recalled, covered, balls = [], [], torch.zeros(len(other), dtype=torch.int64)
    for rows in torch.arange(len(real)).split(IMAGES_AT_ONCE):
        distances = _distances(real[rows], other)
        inside = distances < real_radii[rows, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances < other_radii).any(1))
    return {
        m.PRECISION.name: (balls > 0).double().mean().item(),
        m.RECALL.name: torch.cat(recalled).double().mean().item(),
        m.DENSITY.name: balls.double().mean().item() / neighbours,
        m.COVERAGE.name: torch.cat(covered).double().mean().item(),
    }


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each point (N, F) to its k-th nearest neighbour among the others, (N,)."""
    # The nearest of all is the point itself.
    parts = [_distances(part, points).kthvalue(neighbours + 1).values for part in points.split(IMAGES_AT_ONCE)]
    return torch.cat(parts)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    # By a product of matrices a point would be some way from itself.
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
