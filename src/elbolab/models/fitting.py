"""Posteriors without an encoder: each image's own Gaussian, fitted to its ELBO with the decoder frozen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import DiagonalGaussian


def fit_posterior(
    model: LatentModel,
    x: Tensor,
    start: DiagonalGaussian,
    steps: int,
    lr: float,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> DiagonalGaussian:
    """Maximise the ELBO of images (B, C, H, W) over their own means and log-variances, from ``start``.

    Stochastic variational inference with reparameterised gradients at ``samples`` samples, by Adam at a rate that falls
    from ``lr`` to 0 along a half cosine (Kingma & Welling 2014, eq. 10; Cremer et al. 2018, section 4.2).
    """
    mean, log_var = (value.detach().clone().requires_grad_() for value in (start.mean, start.log_var))
    adam = torch.optim.Adam([mean, log_var], lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad():
            bound = model.bound(x, DiagonalGaussian(mean, log_var), samples, generator)
            bound.sum().neg().backward(inputs=[mean, log_var])
        adam.step()
        adam.zero_grad()
        schedule.step()
    return DiagonalGaussian(mean, log_var).detach()


def choose(candidates: Sequence[DiagonalGaussian], scores: Tensor) -> DiagonalGaussian:
    """For each of B images the candidate of the highest score, (N, B) for N candidates."""
    own = scores.argmax(0), torch.arange(scores.shape[1], device=scores.device)
    mean, log_var = (torch.stack(values) for values in zip(*((q.mean, q.log_var) for q in candidates), strict=True))
    return DiagonalGaussian(mean[own], log_var[own])
