"""Bounds and losses: pure functions of the three log-densities that every model gives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """What a model says of B images with S latent samples each, in nats, constants included.

    ``log_px_z``, ``log_pz`` and ``log_qz`` are log p(x | z), log p(z) and log q(z | x), each (S, B), at z drawn from q.
    ``kl`` is KL(q(z | x) || p(z)), (B,), in closed form where there is one, else the mean of log q - log p over z.
    ``also`` holds what is worth logging beside them, each (B,). A classifier is the case S = 1 with log p(y | x) in the
    first and zeros in the others.
    """

    log_px_z: Tensor
    log_pz: Tensor
    log_qz: Tensor
    kl: Tensor
    also: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def log_w(self) -> Tensor:
        """Log importance weights log p(x, z) - log q(z | x), (S, B)."""
        return self.log_px_z + self.log_pz - self.log_qz


def elbo(terms: Terms) -> Tensor:
    """Evidence lower bound E_q[log p(x | z)] - KL(q || p(z)), (B,) (Kingma & Welling 2014, eq. 3)."""
    return terms.log_px_z.mean(0) - terms.kl


def iw_bound(terms: Terms) -> Tensor:
    """Importance-weighted bound log 1/S sum_s w_s, (B,): from the ELBO up to log p(x) (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(terms.log_w, 0) - math.log(len(terms.log_w))


def beta_loss(terms: Terms, beta: float | Tensor = 1.0) -> Tensor:
    """Mean over the images of -E_q[log p(x | z)] + beta KL(q || p(z)), a scalar (Higgins et al. 2017, eq. 4)."""
    return (beta * terms.kl - terms.log_px_z.mean(0)).mean()
