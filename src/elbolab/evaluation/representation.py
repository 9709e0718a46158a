"""What the latent space holds of the images: active units, rate and distortion, and how far q(z) is from the prior."""

import math

import torch

from elbolab.evaluation.base import IMAGES_AT_ONCE, Evaluation, Results, mean_metrics
from elbolab.evaluation.metrics import ACTIVE_UNITS, AGGREGATE_KL, DISTORTION, RATE
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior

ACTIVE = 0.01
"""Variance of a posterior mean over images, above which its latent dimension is active (Burda et al. 2016)."""
SAMPLES = 10
"""Latent samples an image, for the distortion and for the aggregate posterior."""


@torch.no_grad()
def representation(evaluation: Evaluation) -> Results:
    """Active units, rate, distortion and aggregate KL of the evaluated images of each split, in nats.

    The posteriors are the inferred ones. -(rate + distortion) is their ELBO (Alemi et al. 2018), and the rate is the
    mutual information of image and latent vector plus the aggregate KL, KL(q(z) || p(z)) (Hoffman & Johnson 2016).
    """
    if not isinstance(evaluation.model, LatentModel):
        return Results()
    metrics: dict[str, float] = {}
    for split in evaluation.data.splits:
        inferred = evaluation.inferred(split)
        q = type(inferred[0]).cat(inferred)
        generator = evaluation.generator(f"{split} rate")
        # In closed form, or over these draws.
        kl = torch.cat([part.kl(evaluation.model.prior, part.sample(SAMPLES, generator)) for part in inferred])
        information = mutual_information(q, SAMPLES, evaluation.generator(f"{split} aggregate"))
        metrics |= mean_metrics(RATE.at(split), kl.tolist()) | {
            ACTIVE_UNITS.at(split): float(active_units(q)),
            DISTORTION.at(split): _distortion(evaluation.model, evaluation, split),
            AGGREGATE_KL.at(split): kl.double().mean().item() - information,
        }
    exact = evaluation.model.prior.kl(evaluation.inferred("test")[0]) is not None
    return Results(metrics, {"evaluation.rate": "closed form" if exact else f"{SAMPLES} samples an image"})


def active_units(q: Posterior) -> int:
    """Latent dimensions d with Var_x(E_q[z_d | x]) > 0.01 over the images of ``q`` (Burda et al. 2016, section 5.2)."""
    return int((q.mean.double().var(0, correction=0) > ACTIVE).sum())


@torch.no_grad()
def mutual_information(q: Posterior, samples: int, generator: torch.Generator | None = None) -> float:
    """Mean of log q(z|x_n) - log q(z), in nats, over ``samples`` draws z ~ q(z|x_n) for each of the N images of ``q``.

    q(z) = 1/N sum_n q(z|x_n) is the aggregate posterior of these images: the information is about which of them it was,
    and never above log N (Hoffman & Johnson 2016).
    """
    count = len(q.mean)
    exact, own, total = q.double(), torch.arange(count, device=q.mean.device), 0.0
    for _ in range(samples):
        drawn = q.sample(1, generator)[0].double()
        for rows in own.split(IMAGES_AT_ONCE):
            log_q = exact.pairwise_log_prob(drawn[rows])
            aggregate = log_q.logsumexp(1) - math.log(count)
            total += (log_q.gather(1, rows[:, None])[:, 0] - aggregate).sum().item()
    return total / (samples * count)


def _distortion(model: LatentModel, evaluation: Evaluation, split: str) -> float:
    """Mean -E_q[log p(x|z)]; one sample of one batch is decoded at a time."""
    generator, total, count = evaluation.generator(f"{split} distortion"), 0.0, 0
    for batch, q in evaluation.with_inferred(split):
        for _ in range(SAMPLES):
            params = model.decode(q.sample(1, generator))
            total -= model.likelihood.log_prob(batch.x, params).double().sum().item()
        count += SAMPLES * len(batch)
    return total / count
