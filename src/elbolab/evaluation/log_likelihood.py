"""The evaluator of log p(x): each image's estimate and its diagnostics, means by split and class, bounds by samples."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbolab.data.splits import Batch
from elbolab.evaluation import metrics as m
from elbolab.evaluation.base import Evaluation, Results, image_rows, mean_metrics
from elbolab.evaluation.importance_sampling import Estimate, bound, estimate_log_px, pareto_k
from elbolab.models.latent import LatentModel
from elbolab.support.counters import counted
from elbolab.support.statistics import is_heavy_tailed

CURVE = (1, 10, 100, 1000, 5000)
# Log weights are kept until an image's diagnostics are found: 40 MB of them, or those of one image.
WEIGHTS_AT_ONCE = 5_000_000


def likelihood(evaluation: Evaluation) -> Results:
    """log p(x) of the chosen images of every split: one row an image, means by split and by digit."""
    model = evaluation.model
    if not isinstance(model, LatentModel):
        return Results()
    parts = (part for split in evaluation.data.splits for part in _estimates(model, evaluation, split))
    table = pd.concat([_rows(model, evaluation, *part) for part in parts], ignore_index=True)
    metrics: dict[str, float] = {}
    for split, rows in table[table.posterior != "table"].groupby("split"):
        split = str(split)
        metrics |= mean_metrics(m.LOG_PX.at(split), rows.log_px)
        metrics |= {
            m.POSTERIOR_ELBO.at(split): rows.elbo.mean(),
            m.LOG_PX_CONSTANT.at(split): rows.log_px_constant.mean(),
        }
        metrics |= {m.LOG_PX_DIGIT.at(split, D=label): part.log_px.mean() for label, part in rows.groupby("label")}
        if rows.ess.notna().all():
            metrics |= {m.ESS.at(split): rows.ess.median()}
            metrics |= _trust(evaluation, m.PARETO_K.at(split), m.UNRELIABLE.at(split), rows.pareto_k)
    if len(stored := table[table.posterior == "table"]):
        metrics |= mean_metrics(m.STORED[m.LOG_PX].at("train"), stored.log_px)
        keys = m.STORED[m.PARETO_K].at("train"), m.STORED[m.UNRELIABLE].at("train")
        metrics |= _trust(evaluation, *keys, stored.pareto_k)
    return Results(
        metrics,
        {"evaluation.posterior": model.inference},
        {
            "likelihood.parquet": table.drop(columns=_counts(evaluation), errors="ignore"),
            "curve.parquet": _curve(table),
            "examples.npz": _examples(model, evaluation),
        },
    )


def _trust(evaluation: Evaluation, median: str, share: str, k: pd.Series) -> dict[str, float]:
    return {median: k.median(), share: is_heavy_tailed(k, evaluation.config.samples).mean()}


def mean_log_px(evaluation: Evaluation, split: str) -> dict[str, float]:
    """log p(x) of the evaluated images of one split, with posteriors that the model infers: the mean, nats, and its
    standard error as ``SPLIT/log_px`` and ``_se``, and what ``SPLIT/pareto_k`` and ``SPLIT/unreliable`` say of it.
    """
    assert isinstance(evaluation.model, LatentModel)
    estimates = [found for _, name, found in _estimates(evaluation.model, evaluation, split) if name != "table"]
    metrics = mean_metrics(m.LOG_PX.at(split), torch.cat([found.log_px for found in estimates]).tolist())
    k = [pareto_k(found.log_w) for found in estimates if found.log_w is not None]
    keys = m.PARETO_K.at(split), m.UNRELIABLE.at(split)
    return metrics | _trust(evaluation, *keys, pd.Series(torch.cat(k).cpu())) if k else metrics


def _estimates(model: LatentModel, evaluation: Evaluation, split: str) -> Iterator[tuple[Batch, str, Estimate]]:
    """Some images at a time, the name of the posteriors that were sampled from, and what came of it."""
    generator, samples = evaluation.generator(f"{split} samples"), evaluation.config.samples
    with counted(f"{split} log p(x)", sum(map(len, evaluation.inferred(split)))) as done:
        for batch, posteriors in evaluation.with_posteriors(split, max(1, WEIGHTS_AT_ONCE // samples)):
            for name, q in posteriors.items():
                yield batch, name, estimate_log_px(model, batch.x, q, samples, generator)
            done(len(batch))


def _rows(model: LatentModel, evaluation: Evaluation, batch: Batch, name: str, estimate: Estimate) -> pd.DataFrame:
    params = model.likelihood.from_mean(evaluation.mean_image)
    constant = model.likelihood.log_prob(batch.x, params.expand_as(batch.x))
    unknown = torch.full_like(estimate.log_px, math.nan)
    columns: dict[str | int, Tensor] = {
        "log_px": estimate.log_px,
        "std_err": estimate.std_err,
        "ess": estimate.ess,
        "pareto_k": unknown if estimate.log_w is None else pareto_k(estimate.log_w),
        "elbo": estimate.elbo,
        "log_px_constant": constant,
    }
    if estimate.log_w is not None:
        columns |= {count: bound(estimate.log_w, count) for count in _counts(evaluation)}
    return image_rows(batch, name, columns)


def _counts(evaluation: Evaluation) -> list[int]:
    """The numbers of samples of the curve, up to those that are drawn."""
    samples = evaluation.config.samples
    return [*(count for count in CURVE if count < samples), samples]


def _curve(table: pd.DataFrame) -> pd.DataFrame:
    """The mean bound over the images by the number of samples in it, up to those that were drawn."""
    columns = [column for column in table if isinstance(column, int)]
    bounds = table.melt(["split", "posterior"], columns, "samples", "bound")
    groups = bounds.groupby(["split", "posterior", "samples"], as_index=False)
    return groups.agg(log_px=("bound", "mean"), log_px_se=("bound", "sem"))


def _examples(model: LatentModel, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The first evaluated test image of each class and its reconstruction, as uint8 (classes, H, W, C)."""
    found: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
    for batch, q in evaluation.with_inferred("test"):
        for image, label, index, reconstruction in zip(
            _pixels(batch.x), batch.y.tolist(), batch.index.tolist(), _pixels(model.reconstruct(q)), strict=True
        ):
            found.setdefault(label, (index, image, reconstruction))
    labels = sorted(found)
    columns = [np.array(labels), *map(np.stack, zip(*(found[label] for label in labels), strict=True))]
    return dict(zip(("label", "index", "originals", "reconstructions"), columns, strict=True))


def _pixels(x: Tensor) -> np.ndarray:
    return (x.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
