"""The evaluator of log p(x): each image's estimate, means over whole splits and classes, the bias that is left."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbolab.data.batches import EXAMPLES, Batch
from elbolab.evaluation import metrics as m
from elbolab.evaluation.base import Evaluation, Results, image_rows, mean_metrics, with_error
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.log_likelihood import ELBO_SAMPLES, LogLikelihood, estimate_log_px
from elbolab.evaluation.split_means import class_means, noise_of, split_mean
from elbolab.evaluation.weights import bound, jackknife
from elbolab.models.latent import LatentModel
from elbolab.support.counters import counted

# Samples of q for the jackknife, whose second order takes the square of them.
JACKKNIFED = 100
CURVE = (1, 10, 100, 1000, 5000)
# Log weights are kept until an image's diagnostics are found: 40 MB of them, or those of one image; and no part of an
# evaluation is long without a word of it.
WEIGHTS_AT_ONCE, IMAGES_AT_ONCE = 5_000_000, 60


def likelihood(evaluation: Evaluation) -> Results:
    """log p(x) of the chosen images of every split: one row an image, means over splits and their digits."""
    model, config = evaluation.model, evaluation.config
    if not isinstance(model, LatentModel):
        return Results()
    own = model.axes["inference"]
    table = pd.concat([image_estimates(evaluation, split) for split in evaluation.data.splits], ignore_index=True)
    metrics: dict[str, float] = {}
    for split, rows in table[table.posterior == own].groupby("split"):
        metrics |= _split_metrics(evaluation, str(split), rows.set_index("index"))
    if len(stored := table[table.posterior == "table"]):
        metrics |= {m.STORED[m.POSTERIOR_ELBO].at("train"): stored.elbo.mean()}
        if stored.log_px.notna().all():
            metrics |= mean_metrics(m.STORED[m.LOG_PX].at("train"), stored.log_px)
            metrics |= {m.STORED[m.PARETO_K].at("train"): stored.pareto_k.median()}
            metrics |= {m.STORED[m.UNRELIABLE].at("train"): stored.unreliable.mean()}
    if own != "fitted" and len(fitted := table[table.posterior == "fitted"]):
        known = evaluation.population("test").elbo.to_frame()
        metrics |= {m.FITTED[m.POSTERIOR_ELBO].at("test"): split_mean(fitted.set_index("index").elbo, known)[0]}
    if config.method == "auto" and config.simulated and table.rung.gt(0).any():
        metrics |= _simulated(model, evaluation)
    everyone = pd.concat({split: evaluation.population(split) for split in evaluation.data.splits}, names=["split"])
    files = {
        "likelihood.parquet": table.drop(columns=_counts(table)),
        "curve.parquet": _curve(table),
        "population.parquet": everyone.drop(columns="split").reset_index(),
        "examples.npz": _examples(model, evaluation),
    }
    return Results(metrics, {"evaluation.posterior": model.inference}, files)


def _split_metrics(evaluation: Evaluation, split: str, rows: pd.DataFrame) -> dict[str, float]:
    model, everyone = evaluation.model, evaluation.population(split)
    assert isinstance(model, LatentModel)
    known = everyone.elbo
    noise = noise_of(rows.std_err)
    exact = rows.rung.eq(0).all()
    log_px = (float(known.mean()), 0.0) if exact else split_mean(rows.log_px, known.to_frame(), noise)
    metrics = with_error(m.LOG_PX.at(split), *log_px)
    if model.likelihood.of_bytes:
        nats = math.prod(model.spec.shape) * math.log(2)
        metrics |= with_error(m.BITS_PER_DIM.at(split), -log_px[0] / nats, log_px[1] / nats)
    metrics |= mean_metrics(m.LOG_PX_EVALUATED.at(split), rows.log_px)
    metrics |= {m.POSTERIOR_ELBO.at(split): split_mean(rows.elbo, known.to_frame())[0]}
    for jackknifed in [one for one in (m.JVI_1, m.JVI_2) if one.name in rows]:
        metrics |= with_error(jackknifed.at(split), *split_mean(pd.Series(rows[jackknifed.name]), known.to_frame()))
    metrics |= {m.LOG_PX_CONSTANT.at(split): everyone.log_px_constant.mean()}
    means = class_means(rows.log_px, known, everyone.label, noise)
    # Images without labels are of one class.
    for label, (mean, error) in means.items() if everyone.label.nunique() > 1 else ():
        metrics |= with_error(m.LOG_PX_DIGIT.at(split, D=label), mean, 0.0 if exact else error)
    if not exact:
        metrics |= {m.UNRELIABLE.at(split): rows.unreliable.mean(), m.STD_ERR.at(split): rows.std_err.median()}
        metrics |= {m.ESS.at(split): rows.ess.median()}
        if rows.pareto_k.notna().all():
            metrics |= {m.PARETO_K.at(split): rows.pareto_k.median()}
    return metrics


def mean_log_px(evaluation: Evaluation, split: str) -> dict[str, float]:
    """The mean log p(x) of a split with its standard error, nats, as ``SPLIT/log_px`` and ``_se``, from the evaluated
    images, and ``SPLIT/unreliable``, the share of them whose estimate is.
    """
    model = evaluation.model
    assert isinstance(model, LatentModel)
    rows = image_estimates(evaluation, split)
    metrics = _split_metrics(evaluation, split, rows[rows.posterior == model.axes["inference"]].set_index("index"))
    wanted = (*m.LOG_PX.names, m.UNRELIABLE.name, m.PARETO_K.name)
    return {key: metrics[key] for name in wanted if (key := f"{split}/{name}") in metrics}


def image_estimates(evaluation: Evaluation, split: str) -> pd.DataFrame:
    """The estimates of log p(x) of a split's evaluated images, one row an image and posterior; found once."""
    assert isinstance(evaluation.model, LatentModel)
    if split not in evaluation.estimates:
        parts = [_rows(evaluation, *part) for part in _estimates(evaluation.model, evaluation, split)]
        evaluation.estimates[split] = pd.concat(parts, ignore_index=True)
    return evaluation.estimates[split]


def _estimates(model: LatentModel, evaluation: Evaluation, split: str) -> Iterator[tuple[Batch, str, LogLikelihood]]:
    """Some images at a time, the name of the posteriors that were sampled from, and what came of it."""
    generator, config, own = evaluation.generator(f"{split} samples"), evaluation.config, model.axes["inference"]
    at_once = max(1, min(IMAGES_AT_ONCE, WEIGHTS_AT_ONCE // config.samples))
    with counted(f"{split} log p(x)", sum(map(len, evaluation.inferred(split)))) as done:
        for batch, posteriors in evaluation.with_posteriors(split, at_once):
            for name, q in posteriors.items():
                if name != own and (name == "fitted" or config.method == "auto"):
                    # log p(x) is the model's, by whatever posterior it is found.
                    yield batch, name, _only_elbo(log_weights(model, batch.x, q, ELBO_SAMPLES, generator))
                else:
                    yield batch, name, estimate_log_px(model, batch.x, q, config, generator)
            done(len(batch))


def _only_elbo(log_w: Tensor) -> LogLikelihood:
    unknown = torch.full_like(log_w[0], math.nan)
    no = torch.zeros_like(unknown, dtype=torch.bool)
    return LogLikelihood(unknown, unknown, unknown, unknown, no, no.long() + 1, unknown, log_w.mean(0), log_w)


def _rows(evaluation: Evaluation, batch: Batch, name: str, found: LogLikelihood) -> pd.DataFrame:
    names = ("log_px", "std_err", "ess", "pareto_k", "elbo")
    columns: dict[str | int, Tensor] = {key: getattr(found, key) for key in names}
    columns |= {"log_px_constant": evaluation.constant(batch.x)}
    if found.log_w is not None:
        counts = [count for count in CURVE if count < len(found.log_w)]
        columns |= {count: bound(found.log_w, count) for count in [*counts, len(found.log_w)]}
        some = found.log_w[:JACKKNIFED]
        columns |= {f"jvi_{order}": jackknife(some, order) for order in (1, 2) if len(some) > order}
    rows = image_rows(batch, name, columns)
    rung, unreliable = (value.cpu().numpy() for value in (found.rung, found.unreliable))
    return rows.assign(rung=rung, unreliable=unreliable)


def _simulated(model: LatentModel, evaluation: Evaluation) -> dict[str, float]:
    """How far the estimates are too low at most, on images that the model makes, whose posterior sample is known."""
    generator, count = evaluation.generator("simulated"), evaluation.config.simulated
    with counted("log p(x) of simulated images", count) as done:
        gaps = []
        for part in torch.arange(count).split(IMAGES_AT_ONCE):
            z = model.prior.sample((len(part),), generator)
            with torch.no_grad():
                x = model.likelihood.sample(model.decode(z), generator)
            nothing = torch.zeros(len(z), dtype=torch.int64, device=z.device)
            q = model.infer(Batch(x, nothing, nothing, m.SIMULATED, ""), generator)
            found = estimate_log_px(model, x, q, evaluation.config, generator, known=z)
            gaps += (found.upper - found.log_px).tolist()
            done(len(part))
    return mean_metrics(m.BIAS.at(m.SIMULATED), gaps)


def _counts(table: pd.DataFrame) -> list[int]:
    """The numbers of samples of the curve, which are columns of their own."""
    return [column for column in table if isinstance(column, int)]


def _curve(table: pd.DataFrame) -> pd.DataFrame:
    """The mean bound from samples of q over the images, by the number of samples in it, up to those that were drawn."""
    bounds = table.melt(["split", "posterior"], _counts(table), "samples", "bound").dropna()
    groups = bounds.groupby(["split", "posterior", "samples"], as_index=False)
    return groups.agg(log_px=("bound", "mean"), log_px_se=("bound", "sem"))


def _examples(model: LatentModel, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The first evaluated test image of each class and its reconstruction, as uint8 (classes, H, W, C).

    Of one class those of the first ``EXAMPLES`` images.
    """
    parts = [
        (batch.y.cpu().numpy(), batch.index.cpu().numpy(), _pixels(batch.x), _pixels(model.reconstruct(q)))
        for batch, q in evaluation.with_inferred("test")
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    first = np.unique(columns[0], return_index=True)[1]
    chosen = first if len(first) > 1 else np.arange(min(EXAMPLES, len(columns[0])))
    return dict(zip(("label", "index", "originals", "reconstructions"), (one[chosen] for one in columns), strict=True))


def _pixels(x: Tensor) -> np.ndarray:
    return (x.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
