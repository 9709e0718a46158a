"""Posteriors without an encoder: each image's own member of a family, fitted to its ELBO with the decoder frozen."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior

Q = TypeVar("Q", bound=Posterior)
# Of an image without a row.
START_LOG_VAR, FIT_STEPS, FIT_LR = -2.0, 300, 0.1


def fit_posterior(
    model: LatentModel,
    x: Tensor,
    start: Q,
    steps: int,
    lr: float,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Q:
    """Maximise the ELBO of images (B, C, H, W) over each one's own parameters of the family of ``start``, from there.

    Stochastic variational inference with reparameterised gradients at ``samples`` samples, by Adam at a rate that falls
    from ``lr`` to 0 along a half cosine (Kingma & Welling 2014, eq. 10; Cremer et al. 2018, section 4.2). Gradients are
    computed in the precision of training, which moves the ELBO by some thousandths of a nat.
    """
    free = [value.detach().clone().requires_grad_() for value in start.tensors]
    adam = torch.optim.Adam(free, lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad(), model.as_in_training():
            bound = model.bound(x, start.with_tensors(free), samples, generator)
            bound.sum().neg().backward(inputs=free)
        adam.step()
        adam.zero_grad()
        schedule.step()
    return start.with_tensors(free).detach()


def fit_anew(
    model: LatentModel,
    x: Tensor,
    steps: int = FIT_STEPS,
    lr: float = FIT_LR,
    drawn: bool = False,
    generator: torch.Generator | None = None,
) -> Posterior:
    """The same from nothing: variances of exp(-2) around the prior's mean, or around means ``drawn`` from it."""
    mean = model.prior.sample((len(x),), generator) if drawn else model.prior.moments()[0].expand(len(x), -1)
    start = model.family.around(mean, torch.full_like(mean, START_LOG_VAR))
    return fit_posterior(model, x, start, steps, lr, generator=generator)


def choose(candidates: Sequence[Q], scores: Tensor) -> Q:
    """For each of B images the candidate of the highest score, (N, B) for N candidates of one family."""
    own = scores.argmax(0), torch.arange(scores.shape[1], device=scores.device)
    stacked = (torch.stack(values) for values in zip(*(q.tensors for q in candidates), strict=True))
    return candidates[0].with_tensors(values[own] for values in stacked)
