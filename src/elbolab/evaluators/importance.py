"""log p(x) of each image by importance sampling from q, with its error; exact where the model has a closed form."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbolab.data import Batch
from elbolab.evaluators.subject import Findings, Subject
from elbolab.models.latent import DiagonalGaussian, LatentModel

# What a core's cache holds: larger chunks are slower, not faster.
DECODES_AT_ONCE = 500


@dataclass(frozen=True)
class Estimate:
    """Per image, (B,): log p(x), its standard error, effective sample size, and the mean log weight (the ELBO of q)."""

    log_px: Tensor
    std_err: Tensor
    ess: Tensor
    elbo: Tensor


@torch.no_grad()
def importance_estimate(
    model: LatentModel, x: Tensor, q: DiagonalGaussian, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """log p(x) ~ log 1/S sum_s p(x, z_s) / q(z_s), z_s ~ q, for images (B, C, H, W) (Burda et al. 2016, eq. 8).

    In nats; a lower bound in expectation whose bias vanishes as S grows. With normalised weights v_s, the effective
    sample size is 1 / sum v_s^2 (Kong 1992) and the standard error, by the delta method, is
    sqrt((1/ESS - 1/S) S / (S - 1)). Memory is bounded: at most ``DECODES_AT_ONCE`` latent vectors are decoded at once.
    """
    images_at_once = max(1, min(len(x), DECODES_AT_ONCE // min(samples, 50)))
    parts = [
        _stream(model, x[rows], q[rows], samples, DECODES_AT_ONCE // images_at_once, generator)
        for rows in torch.arange(len(x), device=x.device).split(images_at_once)
    ]
    return Estimate(*(torch.cat(values) for values in zip(*parts, strict=True)))


def estimate_log_px(
    model: LatentModel, x: Tensor, q: DiagonalGaussian, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """``importance_estimate``, or the exact log p(x) of a model that has one: no error, and nothing sampled."""
    if (exact := model.exact_log_px(x)) is None:
        return importance_estimate(model, x, q, samples, generator)
    return Estimate(exact, torch.zeros_like(exact), torch.full_like(exact, math.nan), exact)


def _stream(
    model: LatentModel,
    x: Tensor,
    q: DiagonalGaussian,
    samples: int,
    samples_at_once: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    log_sum_of_squares, total = log_sum.clone(), torch.zeros_like(log_sum)
    for start in range(0, samples, samples_at_once):
        z = q.sample(min(samples_at_once, samples - start), generator)
        log_w = (model.log_joint(x, z) - q.log_prob(z)).double()
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares, (2 * log_w).logsumexp(0))
        total += log_w.sum(0)
    ess = (2 * log_sum - log_sum_of_squares).exp()
    variance = (1 / ess - 1 / samples).clamp(min=0) * samples / max(samples - 1, 1)
    std_err = variance.sqrt() if samples > 1 else torch.full_like(variance, math.inf)
    return log_sum - math.log(samples), std_err, ess, total / samples


def likelihood(subject: Subject) -> Findings:
    """log p(x) of the chosen images of every split: one row an image, means by split and by digit."""
    model = subject.model
    if not isinstance(model, LatentModel):
        return Findings()
    tables = [_split_table(model, subject, split) for split in subject.data.splits]
    table = pd.concat(tables, ignore_index=True)
    metrics: dict[str, float] = {}
    for split, rows in table[table.posterior != "table"].groupby("split"):
        metrics |= _mean(rows.log_px, f"{split}/log_px")
        metrics |= {
            f"{split}/posterior_elbo": rows.elbo.mean(),
            f"{split}/log_px_constant": rows.log_px_constant.mean(),
        }
        metrics |= {f"{split}/log_px_digit_{label}": part.log_px.mean() for label, part in rows.groupby("label")}
        if rows.ess.notna().all():
            metrics[f"{split}/ess"] = rows.ess.median()
    if len(stored := table[table.posterior == "table"]):
        metrics |= _mean(stored.log_px, "train/log_px_table")
    return Findings(
        metrics,
        {"evaluation.posterior": model.inference},
        {"likelihood.parquet": table, "examples.npz": _examples(model, subject)},
    )


def mean_log_px(subject: Subject, split: str) -> float:
    """Mean log p(x), in nats, of the evaluated images of one split, under posteriors that the model infers."""
    assert isinstance(subject.model, LatentModel)
    table = _split_table(subject.model, subject, split)
    return float(table[table.posterior != "table"].log_px.mean())


def _mean(values: pd.Series, key: str) -> dict[str, float]:
    """The mean and its standard error; the spread of the estimates holds the importance noise too."""
    mean = {key: float(values.mean())}
    if len(values) < 2:
        return mean
    return {**mean, f"{key}_se": float(np.std(values.to_numpy(), ddof=1)) / math.sqrt(len(values))}


def _split_table(model: LatentModel, subject: Subject, split: str) -> pd.DataFrame:
    generator = subject.generator()
    parts = []
    for batch, q in zip(subject.batches(split), subject.inferred(split), strict=True):
        parts.append(_rows(model, subject, batch, q, model.inference.partition(":")[0], generator))
        if (stored := model.stored_posterior(batch)) is not None:
            parts.append(_rows(model, subject, batch, stored, "table", generator))
    return pd.concat(parts, ignore_index=True)


def _rows(
    model: LatentModel, subject: Subject, batch: Batch, q: DiagonalGaussian, name: str, generator: torch.Generator
) -> pd.DataFrame:
    estimate = estimate_log_px(model, batch.x, q, subject.config.samples, generator)
    mean_image = subject.data.train.images.float().mean(0) / 255
    constant = model.likelihood.log_prob(batch.x, model.likelihood.from_mean(mean_image).expand_as(batch.x))
    columns = {
        "log_px": estimate.log_px,
        "std_err": estimate.std_err,
        "ess": estimate.ess,
        "elbo": estimate.elbo,
        "log_px_constant": constant,
    }
    return pd.DataFrame(
        {"index": batch.index.cpu().numpy(), "split": batch.split, "label": batch.y.cpu().numpy(), "posterior": name}
        | {key: value.double().cpu().numpy() for key, value in columns.items()}
    )


def _examples(model: LatentModel, subject: Subject) -> dict[str, np.ndarray]:
    """The first evaluated test image of each class and its reconstruction, as uint8 (classes, H, W, C)."""
    found: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
    for batch, q in zip(subject.batches("test"), subject.inferred("test"), strict=True):
        for image, label, index, reconstruction in zip(
            _pixels(batch.x), batch.y.tolist(), batch.index.tolist(), _pixels(model.reconstruct(q)), strict=True
        ):
            found.setdefault(label, (index, image, reconstruction))
    labels = sorted(found)
    indices, originals, reconstructions = zip(*(found[label] for label in labels), strict=True)
    return {
        "index": np.array(indices),
        "label": np.array(labels),
        "originals": np.stack(originals),
        "reconstructions": np.stack(reconstructions),
    }


def _pixels(x: Tensor) -> np.ndarray:
    return (x.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
