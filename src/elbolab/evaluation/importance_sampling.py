"""Importance sampling of log p(x) from any distribution of z."""

from typing import Any, Protocol

import torch
from torch import Tensor

from elbolab.evaluation.weights import Estimate, summarise
from elbolab.models.latent import LatentModel


class Proposal(Protocol):
    """What is sampled from: a distribution of z for each of B images, such as a posterior."""

    def sample(self, samples: int, generator: torch.Generator | None = None) -> Tensor: ...

    def log_prob(self, z: Tensor) -> Tensor: ...

    def __getitem__(self, rows: Any) -> "Proposal": ...


@torch.no_grad()
def log_weights(
    model: LatentModel, x: Tensor, q: Proposal, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """log p(x, z_s) - log q(z_s), z_s ~ q, for images (B, C, H, W): (S, B), in nats, in double precision.

    Memory is bounded: beside the weights at most ``model.decodes_at_once`` latent vectors are decoded at once.
    """
    log_w = torch.empty(samples, len(x), dtype=torch.float64, device=x.device)
    most = model.decodes_at_once
    images_at_once = max(1, min(len(x), most // min(samples, 50)))
    samples_at_once = most // images_at_once
    for rows in torch.arange(len(x), device=x.device).split(images_at_once):
        for start in range(0, samples, samples_at_once):
            z = q[rows].sample(min(samples_at_once, samples - start), generator)
            log_w[start : start + len(z), rows] = log_weights_at(model, x[rows], q[rows], z)
    return log_w


@torch.no_grad()
def log_weights_at(model: LatentModel, x: Tensor, q: Proposal, z: Tensor) -> Tensor:
    """log p(x, z) - log q(z) at z (S, B, D), (S, B), in nats, in double precision."""
    return (model.log_joint(x, z) - q.log_prob(z)).double()


def importance_estimate(
    model: LatentModel, x: Tensor, q: Proposal, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """log p(x) ~ log 1/S sum_s p(x, z_s) / q(z_s), z_s ~ q, for images (B, C, H, W) (Burda et al. 2016, eq. 8).

    In nats; a lower bound in expectation whose bias vanishes as S grows.
    """
    return summarise(log_weights(model, x, q, samples, generator))
