"""Posteriors without an encoder: each image's own member of a family, fitted to its ELBO with the decoder frozen."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior

Q = TypeVar("Q", bound=Posterior)


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
    from ``lr`` to 0 along a half cosine (Kingma & Welling 2014, eq. 10; Cremer et al. 2018, section 4.2).
    """
    free = [value.detach().clone().requires_grad_() for value in start.tensors]
    adam = torch.optim.Adam(free, lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad():
            bound = model.bound(x, type(start)(*free), samples, generator)
            bound.sum().neg().backward(inputs=free)
        adam.step()
        adam.zero_grad()
        schedule.step()
    return type(start)(*free).detach()


def choose(candidates: Sequence[Q], scores: Tensor) -> Q:
    """For each of B images the candidate of the highest score, (N, B) for N candidates of one family."""
    own = scores.argmax(0), torch.arange(scores.shape[1], device=scores.device)
    stacked = (torch.stack(values) for values in zip(*(q.tensors for q in candidates), strict=True))
    return type(candidates[0])(*(values[own] for values in stacked))
