"""Log importance weights, whatever they come from: the estimate that they give, its error, and their tail."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elbolab.support.statistics import is_heavy_tailed

# In logarithms, what double precision holds.
LARGEST_RATIO = 600.0


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


def bound(log_w: Tensor, samples: int) -> Tensor:
    """The importance-weighted bound L_K at K = ``samples``, (B,), from log weights (S, B), K <= S.

    Its mean over the S // K groups of K weights, which has the expectation of one and less noise (Burda et al. 2016,
    eq. 8).
    """
    groups = log_w[: len(log_w) // samples * samples].unflatten(0, (-1, samples))
    return (groups.logsumexp(1) - math.log(samples)).mean(0)


def jackknife(log_w: Tensor, order: int) -> Tensor:
    """log p(x) by jackknife variational inference of ``order`` 1 or 2, (B,), from log weights (K, B), K > ``order``.

    sum_j (-1)^j (K - j)^order / ((order - j)! j!) L_(K-j), j = 0 to ``order``, with L_(K-j) the mean of
    log 1/(K-j) sum_s w_s over all choices of K - j of the weights (Nowozin 2018, section 3). The bias of L_K falls as
    1/K, that of this as 1/K^(order + 1). No bound: it may be too high. Time and memory grow as K^order.
    """
    count = len(log_w)
    bounds = [log_w.logsumexp(0), _without_each(log_w).mean(0)]
    if order == 2:
        itself = torch.eye(count, dtype=torch.bool, device=log_w.device)[..., None]
        first, second = torch.triu_indices(count, count, 1, device=log_w.device)
        bounds.append(_without_each(log_w[:, None].masked_fill(itself, -math.inf))[first, second].mean(0))
    total = torch.zeros_like(bounds[0])
    for left_out, bound in enumerate(bounds):
        kept = count - left_out
        share = (-1) ** left_out * kept**order / math.factorial(order - left_out) / math.factorial(left_out)
        total += share * (bound - math.log(kept))
    return total


def _without_each(log_w: Tensor) -> Tensor:
    """The log sum of all weights but one, for each of them along the first dimension; same shape.

    From sums of those before and after it: a difference would lose what is small beside it.
    """
    nothing = torch.full_like(log_w[:1], -math.inf)
    before = torch.cat([nothing, log_w[:-1].logcumsumexp(0)])
    after = torch.cat([log_w[1:].flip(0).logcumsumexp(0).flip(0), nothing])
    return torch.logaddexp(before, after)


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
            with np.errstate(all="ignore"):
                return float(array_stats.psislw(-weights)[1])
        except ValueError:
            return -math.inf

    return log_w.new_tensor([k(weights) for weights in log_w.T.cpu().numpy()])
