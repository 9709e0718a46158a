"""The estimator of log p(x) that is quoted: each image's with an error within a tolerance, by the cheapest way."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elbolab.config.schema import LikelihoodConfig
from elbolab.evaluation.annealing import anneal
from elbolab.evaluation.gaussian_approximation import (
    GaussianApproximation,
    fit_gaussian,
    measure_curvature,
    standard_log_prob,
)
from elbolab.evaluation.importance_sampling import log_weights, log_weights_at
from elbolab.evaluation.weights import pareto_k, summarise
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior
from elbolab.support.statistics import is_heavy_tailed

# Above it the weights' variance is not finite, and a standard error means nothing (Vehtari et al. 2024, section 2.2).
LARGEST_K = 0.5
# Of the log weights of annealed chains; above it the few largest of them may not be among so few chains.
LARGEST_VARIANCE, NEGLIGIBLE_VARIANCE = 1.0, 0.01
# Samples of q for its ELBO, and of the Gaussian that say whether sampling from it will do.
ELBO_SAMPLES = PILOT_SAMPLES = 100
CHAINS = 32
DISTRIBUTIONS = (32, 64, 128, 256, 512)
"""Numbers of distributions of the annealed rungs: of estimates by 8 or 16 one in a hundred is 10 nats too low, and its
standard error does not show it."""
# By how much more of them an image is tried again at most, since few chains do not know their variance well.
LARGEST_JUMP = 16
# Of the start of chains beside the Gaussian, along the directions that are the image's own: a start with lighter tails
# than the posterior's leaves these to few chains of large weights.
WIDER = 1.3
# In whitened coordinates a step of this size is accepted three times of four, where the posterior is about Gaussian.
STEP_SIZE, LEAPFROG = 0.4, 2
PILOT_CHAINS, PILOT_DISTRIBUTIONS, PILOT_ADAPTATION = 4, 8, 0.5


@dataclass
class LogLikelihood:
    """Per image, (B,): log p(x) in nats, double, and how sure it is.

    ``std_err`` is the estimate's own error, ``pareto_k`` that of importance weights (NaN of others), ``unreliable``
    whether the error is above the tolerance or the weights are heavy-tailed. ``rung`` is the number of distributions
    of annealing, 1 of importance sampling, 0 of a closed form. ``upper`` is, where it was asked for, an upper bound in
    expectation. ``elbo`` is that of q, ``log_w`` (S, B) the weights of its samples; a closed form has none.
    """

    log_px: Tensor
    std_err: Tensor
    ess: Tensor
    pareto_k: Tensor
    unreliable: Tensor
    rung: Tensor
    upper: Tensor
    elbo: Tensor
    log_w: Tensor | None = None


def estimate_log_px(
    model: LatentModel,
    x: Tensor,
    q: Posterior,
    config: LikelihoodConfig,
    generator: torch.Generator | None = None,
    known: Tensor | None = None,
) -> LogLikelihood:
    """log p(x) of images (B, C, H, W), whose posteriors q help to find: exact where the model has a closed form.

    With ``method=importance`` from ``samples`` samples of q (Burda et al. 2016, eq. 8). With ``method=auto`` each image
    takes the first rung that meets ``tolerance``: importance sampling from a Gaussian approximation of its posterior,
    then annealing from there with more and more distributions (Neal 2001), as many as the weights of the rung before
    ask for if their variance falls as one over that number. Every rung draws anew, and its mean weight is unbiased, so
    that its logarithm is a lower bound in expectation. The choice of the rung depends on the weights: it rejects
    estimates with large weights, which makes what is quoted lower, not higher.

    ``known`` are exact posterior samples z (B, D) of images that the model made: with one of the weights replaced by
    that of ``known``, or of a chain back from it, the estimate is an upper bound in expectation (Grosse et al. 2015,
    section 4.2), ``upper``.
    """
    unknown = torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
    none, first = (torch.full((len(x),), rung, device=x.device) for rung in (0, 1))
    if (exact := model.exact_log_px(x)) is not None:
        exact = exact.double()
        return LogLikelihood(exact, torch.zeros_like(exact), unknown, unknown, none > 0, none, unknown, exact)
    samples = config.samples if config.method == "importance" else min(config.samples, ELBO_SAMPLES)
    log_w = log_weights(model, x, q, samples, generator)
    elbo = log_w.mean(0)
    if config.method == "importance":
        found, k = summarise(log_w), pareto_k(log_w)
        heavy = is_heavy_tailed(k, samples)
        return LogLikelihood(found.log_px, found.std_err, found.ess, k, heavy, first, unknown, elbo, log_w)
    log_px, std_err, ess, k, upper = (unknown.clone() for _ in range(5))
    estimate = LogLikelihood(log_px, std_err, ess, k, first > 0, first, upper, elbo, log_w)
    _climb(model, x, q, config, generator, known, estimate)
    return estimate


def _climb(
    model: LatentModel,
    x: Tensor,
    q: Posterior,
    config: LikelihoodConfig,
    generator: torch.Generator | None,
    known: Tensor | None,
    estimate: LogLikelihood,
) -> None:
    """Fill in the estimate, rung by rung, for the images that the rung before has left."""
    curvature = measure_curvature(model, q.mean)
    everything = torch.arange(len(x), device=x.device)
    at_once = max(1, model.decodes_at_once // CHAINS)
    parts = [fit_gaussian(model, x[rows], q.mean[rows], curvature, generator) for rows in everything.split(at_once)]
    gaussian = GaussianApproximation.cat(parts)
    wider = replace(gaussian, inverse=WIDER * gaussian.inverse)
    pilot = log_weights(model, x, gaussian, PILOT_SAMPLES, generator)
    # Pareto k has no meaning where the weights are nearly equal.
    light = (pareto_k(pilot) <= LARGEST_K) | (pilot.var(0) <= NEGLIGIBLE_VARIANCE)
    light &= len(pilot) / summarise(pilot).ess - 1 <= config.samples * config.tolerance**2
    if config.budget < CHAINS * LEAPFROG * DISTRIBUTIONS[0]:
        # Without annealing an estimate from samples, marked as unreliable, is better than none.
        light[:] = True
    wanted = torch.where(light, 1, DISTRIBUTIONS[0])
    gradients = torch.full_like(wanted, config.budget)
    for rung in (1, *DISTRIBUTIONS):
        left = everything[wanted == rung]
        for rows in left.split(at_once) if len(left) else ():
            ends = None if known is None else known[rows]
            if rung == 1:
                log_w, back = _sampled(model, x[rows], gaussian[rows], config.samples, generator, ends)
                k = pareto_k(log_w)
                heavy = (k > LARGEST_K) & (log_w.var(0) > NEGLIGIBLE_VARIANCE)
            else:
                log_w, back = anneal_whitened(model, x[rows], wider[rows], CHAINS, rung, generator, ends)
                k = torch.full_like(log_w[0], math.nan)
                heavy = log_w.var(0) > LARGEST_VARIANCE
            found = summarise(log_w)
            estimate.log_px[rows], estimate.std_err[rows], estimate.ess[rows] = found.log_px, found.std_err, found.ess
            estimate.pareto_k[rows], estimate.rung[rows] = k, rung
            # What is no number is not within the tolerance either.
            estimate.unreliable[rows] = heavy | ~(found.std_err <= config.tolerance)
            gradients[rows] -= CHAINS * LEAPFROG * rung if rung > 1 else 0
            excess = torch.maximum(log_w.var(0) / LARGEST_VARIANCE, (found.std_err / config.tolerance).square())
            further = _next_rung(rung, excess, gradients[rows])
            wanted[rows] = torch.where(estimate.unreliable[rows], further, 0)
            if back is not None:
                estimate.upper[rows] = torch.cat([log_w[1:], back[None]]).logsumexp(0) - math.log(len(log_w))


def _next_rung(rung: int, excess: Tensor, gradients: Tensor) -> Tensor:
    """The number of distributions for images whose variance at ``rung`` is ``excess`` times too large, (B,).

    The nearest that these ``gradients`` (B,) pay for; 0 where they pay for no more than was tried.
    """
    ladder = torch.tensor(DISTRIBUTIONS, device=excess.device)
    jump = excess.nan_to_num(LARGEST_JUMP).clamp(2, LARGEST_JUMP) * rung if rung > 1 else torch.ones_like(excess)
    paid = torch.searchsorted(ladder * CHAINS * LEAPFROG, gradients, right=True) - 1
    place = torch.minimum(torch.searchsorted(ladder, jump).clamp(max=len(ladder) - 1), paid)
    found = ladder[place.clamp(min=0)]
    return torch.where((place >= 0) & (found > rung), found, 0)


def _sampled(
    model: LatentModel,
    x: Tensor,
    gaussian: GaussianApproximation,
    samples: int,
    generator: torch.Generator | None,
    known: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    log_w = log_weights(model, x, gaussian, samples, generator)
    return log_w, None if known is None else log_weights_at(model, x, gaussian, known[None])[0]


def anneal_whitened(
    model: LatentModel,
    x: Tensor,
    start: GaussianApproximation,
    chains: int,
    distributions: int,
    generator: torch.Generator | None = None,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log weights (S, B), double, of ``chains`` annealed from ``start`` to the posterior in its whitened coordinates.

    In these the start is N(0, I), the temperatures are linear, and every move is ``LEAPFROG`` steps of a size
    that pilot chains, thrown away afterwards, found for each image. Moves are made in the precision of training, with a
    last weight from that density to the exact one. With ``known``, exact posterior samples z (B, D), also the log
    weights (B,) of chains that end there: that of a chain back from it, with its sign turned.
    """

    def log_joint(u: Tensor) -> Tensor:
        return model.log_joint(x, start.to_latent(u)) + start.log_det

    def fast_log_joint(u: Tensor) -> Tensor:
        with model.as_in_training():
            return log_joint(u)

    def correction(u: Tensor) -> Tensor:
        with torch.no_grad():
            return log_joint(u).double() - fast_log_joint(u).double()

    def noise(count: int) -> Tensor:
        shape = (count, *start.mean.shape)
        return torch.randn(shape, generator=generator, device=x.device, dtype=start.mean.dtype)

    densities = standard_log_prob, fast_log_joint
    pilot = torch.linspace(0, 1, PILOT_DISTRIBUTIONS + 1, dtype=torch.float64)
    settings = LEAPFROG, generator, None, STEP_SIZE, PILOT_ADAPTATION
    found = anneal(*densities, noise(PILOT_CHAINS), pilot, *settings).step_sizes
    # One size for the whole of a path, so that a chain may be followed back.
    step_sizes = found[-1].log().mean(0).exp().expand(distributions - 1, chains, -1)
    temperatures = torch.linspace(0, 1, distributions + 1, dtype=torch.float64)
    forward = anneal(*densities, noise(chains), temperatures, LEAPFROG, generator, step_sizes)
    log_w = forward.log_w + correction(forward.end)
    if known is None:
        return log_w, None
    ends = start.to_whitened(known[None])
    back = anneal(*densities, ends, temperatures.flip(0), LEAPFROG, generator, step_sizes[:, :1])
    return log_w, correction(ends)[0] - back.log_w[0]
