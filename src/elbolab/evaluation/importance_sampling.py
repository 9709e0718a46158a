"""log p(x) of an image by importance sampling from q: the estimate, its error, and whether to trust its weights."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior
from elbolab.support.statistics import is_heavy_tailed

# In logarithms, what double precision holds.
LARGEST_RATIO = 600.0
# On a CPU fewer are slower and more no faster; a GPU wants enough to do.
DECODES_AT_ONCE = {"cpu": 500, "cuda": 20_000}


@dataclass(frozen=True)
class Estimate:
    """Per image, (B,): log p(x), its standard error, effective sample size, and the mean log weight (the ELBO of q).

    ``log_w`` (S, B), in double precision, are the log weights that they come from; a closed form has none. Annealed
    chains have a mean ``acceptance`` of their moves too.
    """

    log_px: Tensor
    std_err: Tensor
    ess: Tensor
    elbo: Tensor
    log_w: Tensor | None = None
    acceptance: Tensor | None = None


@torch.no_grad()
def log_weights(
    model: LatentModel, x: Tensor, q: Posterior, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """log p(x, z_s) - log q(z_s), z_s ~ q, for images (B, C, H, W): (S, B), in nats, in double precision.

    Memory is bounded: beside the weights at most the device's ``DECODES_AT_ONCE`` latent vectors are decoded at once.
    """
    log_w = torch.empty(samples, len(x), dtype=torch.float64, device=x.device)
    decodes_at_once = DECODES_AT_ONCE.get(x.device.type, DECODES_AT_ONCE["cpu"])
    images_at_once = max(1, min(len(x), decodes_at_once // min(samples, 50)))
    samples_at_once = decodes_at_once // images_at_once
    for rows in torch.arange(len(x), device=x.device).split(images_at_once):
        for start in range(0, samples, samples_at_once):
            z = q[rows].sample(min(samples_at_once, samples - start), generator)
            log_w[start : start + len(z), rows] = (model.log_joint(x[rows], z) - q[rows].log_prob(z)).double()
    return log_w


def importance_estimate(
    model: LatentModel, x: Tensor, q: Posterior, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """log p(x) ~ log 1/S sum_s p(x, z_s) / q(z_s), z_s ~ q, for images (B, C, H, W) (Burda et al. 2016, eq. 8).

    In nats; a lower bound in expectation whose bias vanishes as S grows.
    """
    return summarise(log_weights(model, x, q, samples, generator))


def summarise(log_w: Tensor) -> Estimate:
    """The estimate log 1/S sum_s w_s of log weights (S, B), and how sure it is.

    With normalised weights v_s, the effective sample size is 1 / sum v_s^2 (Kong 1992) and the standard error, by the
    delta method, is sqrt((1/ESS - 1/S) S / (S - 1)). Neither sees what no sample has met: see ``pareto_k``.
    """
    samples, log_sum = len(log_w), log_w.logsumexp(0)
    ess = (2 * log_sum - (2 * log_w).logsumexp(0)).exp()
    variance = (1 / ess - 1 / samples).clamp(min=0) * samples / max(samples - 1, 1)
    std_err = variance.sqrt() if samples > 1 else torch.full_like(variance, math.inf)
    return Estimate(log_sum - math.log(samples), std_err, ess, log_w.mean(0), log_w)


def estimate_log_px(
    model: LatentModel, x: Tensor, q: Posterior, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """``importance_estimate``, or the exact log p(x) of a model that has one: no error, and nothing sampled."""
    if (exact := model.exact_log_px(x)) is None:
        return importance_estimate(model, x, q, samples, generator)
    return Estimate(exact, torch.zeros_like(exact), torch.full_like(exact, math.nan), exact)


def bound(log_w: Tensor, samples: int) -> Tensor:
    """The importance-weighted bound L_K at K = ``samples``, (B,), from log weights (S, B), K <= S.

    Its mean over the S // K groups of K weights, which has the expectation of one and less noise (Burda et al. 2016,
    eq. 8).
    """
    groups = log_w[: len(log_w) // samples * samples].unflatten(0, (-1, samples))
    return (groups.logsumexp(1) - math.log(samples)).mean(0)


def heavy_tailed(estimate: Estimate) -> Tensor:
    """Whether each image's importance weights have a Pareto k above what so many samples allow, (B,)."""
    assert estimate.log_w is not None, "a closed form has no weights"
    return is_heavy_tailed(pareto_k(estimate.log_w), len(estimate.log_w))


def pareto_k(log_w: Tensor) -> Tensor:
    """Shape k of the generalised Pareto distribution of the largest weights, (S, B) log weights to (B,).

    The weights have 1/k finite moments: above ``k_threshold`` their mean is not to be trusted (Vehtari et al. 2024,
    section 3). -inf where the largest weights are all equal, +inf where fewer than 25 samples leave too short a tail,
    or where weights are no numbers or too far apart for one.
    """
    # A command that estimates nothing need not wait a second for it.
    from arviz_stats.base.array import array_stats

    if len(log_w) < 25:
        return torch.full_like(log_w[0], math.inf)

    tail = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))

    def k(weights: np.ndarray) -> float:
        # Beside the largest weight the others of the tail would all be zero.
        if not np.isfinite(weights).all() or weights.max() - np.partition(weights, -tail)[-tail] > LARGEST_RATIO:
            return math.inf
        try:
            # It wants log ratios of leave-one-out, which are minus the log weights.
            return float(array_stats.psislw(-weights)[1])
        except ValueError:
            return -math.inf

    return log_w.new_tensor([k(weights) for weights in log_w.T.cpu().numpy()])
