"""Annealed importance sampling with Hamiltonian Monte Carlo: log weights of chains, and bounds from both sides."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elbolab.config.schema import GapConfig
from elbolab.evaluation.weights import Estimate, summarise
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior
from elbolab.models.priors import Prior
from elbolab.support.gradients import value_and_gradient

ACCEPTANCE = 0.65
FIRST_STEP_SIZE, ADAPTATION = 0.1, 0.05
SIGMOID_SLOPE = 4.0
# Of so many chains one more goes ahead, whose step sizes they take.
CHAINS_A_PILOT = 4
Density = Callable[[Tensor], Tensor]
"""A log density of z or of whitened coordinates, (S, B, D) to (S, B)."""


@dataclass(frozen=True)
class PriorStart:
    """The prior as the start of the chains of ``images`` images."""

    prior: Prior
    images: int

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self.prior.sample((samples, self.images), generator)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.prior.log_prob(z)


Start = Posterior | PriorStart
"""Where chains begin: a distribution of z for each of B images."""


def betas(config: GapConfig) -> Tensor:
    """Inverse temperatures 0 = beta_0 < ... < beta_T = 1, (T + 1,) for T = ``config.ais_distributions``.

    ``linear`` in t / T, or ``sigmoid``: sigma(4 (2 t / T - 1)) scaled to [0, 1], slow at both ends (Wu et al. 2017,
    section 4).
    """
    t = torch.linspace(0, 1, config.ais_distributions + 1, dtype=torch.float64)
    if config.ais_schedule == "linear":
        return t
    curve = (SIGMOID_SLOPE * (2 * t - 1)).sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


def annealed_estimate(
    model: LatentModel,
    x: Tensor,
    start: Start,
    config: GapConfig,
    generator: torch.Generator | None = None,
) -> Estimate:
    """log p(x) of images (B, C, H, W) by annealing from ``start`` to the posterior (Neal 2001; Wu et al. 2017).

    In nats; a lower bound in expectation. Each of ``config.ais_chains`` passes through f_t(z) proportional to
    start(z)^(1 - beta_t) p(x, z)^beta_t, with one HMC move of ``config.ais_leapfrog`` steps at each; all chains of all
    images are one batch. The step sizes are those that pilot chains of their own found.
    """
    return _forward(model, x, start, config, generator)[0]


def _forward(
    model: LatentModel, x: Tensor, start: Start, config: GapConfig, generator: torch.Generator | None
) -> tuple[Estimate, Tensor]:
    temperatures, pilots = betas(config), max(1, config.ais_chains // CHAINS_A_PILOT)
    densities = start.log_prob, lambda z: model.log_joint(x, z)
    z = start.sample(pilots, generator)
    found = anneal(*densities, z, temperatures, config.ais_leapfrog, generator).step_sizes
    step_sizes = found[:, torch.arange(config.ais_chains, device=x.device) % pilots]
    z = start.sample(config.ais_chains, generator)
    chains = anneal(*densities, z, temperatures, config.ais_leapfrog, generator, step_sizes)
    return replace(summarise(chains.log_w), acceptance=chains.acceptance.mean(0)), step_sizes


def bidirectional_bounds(
    model: LatentModel,
    x: Tensor,
    z: Tensor,
    start: Start,
    config: GapConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Stochastic lower and upper bounds on log p(x), (B,) each, in nats, of images that ``model`` made from z (B, D).

    z is an exact posterior sample of such an image, so that annealing from it back to ``start`` gives an unbiased
    estimate of 1 / p(x), and by Jensen an upper bound of log p(x) in expectation (Grosse et al. 2015, section 4.2).
    """
    lower, step_sizes = _forward(model, x, start, config, generator)
    ends, temperatures = z.expand(config.ais_chains, *z.shape), betas(config).flip(0)
    densities = start.log_prob, lambda at: model.log_joint(x, at)
    back = anneal(*densities, ends, temperatures, config.ais_leapfrog, generator, step_sizes.flip(0))
    return lower.log_px, -summarise(back.log_w).log_px


@dataclass(frozen=True)
class Chains:
    """Where chains ended, (S, B, D), their log weights (S, B), double, step sizes (T - 1, S, B), acceptance (S, B)."""

    end: Tensor
    log_w: Tensor
    step_sizes: Tensor
    acceptance: Tensor


def anneal(
    log_start: Density,
    log_joint: Density,
    z: Tensor,
    temperatures: Tensor,
    leapfrog: int,
    generator: torch.Generator | None = None,
    step_sizes: Tensor | None = None,
    first_step_size: float = FIRST_STEP_SIZE,
    adaptation: float = ADAPTATION,
) -> Chains:
    """Chains that begin at z (S, B, D) and pass through ``temperatures`` in their order.

    log w = sum_t (beta_t - beta_(t-1)) (log p(x, z_(t-1)) - log start(z_(t-1))) (Neal 2001, eq. 11). Without
    ``step_sizes`` each chain's follows its own acceptance towards 65 %, from ``first_step_size`` and by a factor of at
    most exp(``adaptation``) a move (Neal 2011, section 4.4): a step size that depends on the chain's past does not
    leave the distribution invariant, and these weights are biased.
    """
    log_w = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    acceptances = torch.zeros_like(log_w)
    adaptive = step_sizes is None
    if step_sizes is None:
        step_sizes = torch.full((len(temperatures) - 2, *z.shape[:2]), first_step_size, device=z.device)
    here = (*value_and_gradient(log_joint, z), *value_and_gradient(log_start, z))
    pairs = list(zip(temperatures.tolist(), temperatures[1:].tolist(), strict=False))
    for place, (before, beta) in enumerate(pairs):
        log_w += (beta - before) * (here[0].double() - here[2].double())
        if place + 1 == len(pairs):
            break
        step_size = step_sizes[place, ..., None]
        momentum = torch.randn(z.shape, generator=generator, device=z.device)
        new_z, new, velocity = z, here, momentum
        for _ in range(leapfrog):
            velocity = velocity + 0.5 * step_size * _mix(beta, new[1], new[3])
            new_z = new_z + step_size * velocity
            new = (*value_and_gradient(log_joint, new_z), *value_and_gradient(log_start, new_z))
            velocity = velocity + 0.5 * step_size * _mix(beta, new[1], new[3])
        energy = _mix(beta, here[0], here[2]) - 0.5 * momentum.square().sum(-1)
        new_energy = _mix(beta, new[0], new[2]) - 0.5 * velocity.square().sum(-1)
        # A trajectory that diverged has an energy that is no number, and is refused.
        acceptance = (new_energy - energy).exp().clamp(max=1).nan_to_num(0.0)
        acceptances += acceptance
        accepted = torch.rand(acceptance.shape, generator=generator, device=z.device) < acceptance
        z = torch.where(accepted[..., None], new_z, z)
        here = tuple(
            torch.where(accepted[..., None] if old.ndim == 3 else accepted, fresh, old)
            for old, fresh in zip(here, new, strict=True)
        )
        if adaptive and place + 1 < len(step_sizes):
            step_sizes[place + 1] = step_sizes[place] * (adaptation * (acceptance - ACCEPTANCE)).exp()
    return Chains(z, log_w, step_sizes, acceptances / len(step_sizes))


def _mix(beta: float, joint: Tensor, start: Tensor) -> Tensor:
    return beta * joint + (1 - beta) * start
