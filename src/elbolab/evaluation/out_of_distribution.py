"""Whether a model tells images of other data sets from those of its own: scores of each image, and their AUROC."""

import io
import math
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elbolab.data.batches import Batch, Split
from elbolab.evaluation import metrics as m
from elbolab.evaluation.base import Evaluation, Results, image_rows, mean_metrics, with_error
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.likelihood import image_estimates
from elbolab.evaluation.log_likelihood import ELBO_SAMPLES, estimate_log_px
from elbolab.models.fitting import FIT_LR, FIT_STEPS, choose, fit_posterior
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import Posterior
from elbolab.support.counters import counted
from elbolab.support.statistics import auroc

# Of the ELBO in each step. In the dimensions that were tried ten samples in each of 1,000 steps find 0.1 nats more.
STEP_SAMPLES = 4
# No part of an evaluation is long without a word of it.
IMAGES_AT_ONCE = 50
ESTIMATES = ["log_px", "std_err", "elbo", "unreliable"]
FEW = {
    "exact": "posteriors are exact: its likelihood regret is 0, which tells nothing apart",
    "fitted": "posteriors are fitted to each image already: its likelihood regret is about 0, and tells little apart",
}


def out_of_distribution(evaluation: Evaluation) -> Results:
    """Scores of the evaluated test images and of as many of each other data set, and the AUROC of each score.

    The other images are stratified by the same seed, and observed and estimated as the own ones are. Scores, in nats:
    log p(x) as it is quoted, the ELBO of the model's own q, the likelihood regret (Xiao et al. 2020), and log p(x) plus
    the image's complexity (Serrà et al. 2020). The AUROC is the probability that another image is scored as less likely
    than an own one: below 0.5 the model finds the other data likelier (Nalisnick et al. 2019).
    """
    model = evaluation.model
    if not isinstance(model, LatentModel) or not evaluation.others:
        return Results()
    inference = model.axes["inference"]
    if inference in FEW:
        print(f"elbolab: {type(model).__name__}: {FEW[inference]}", file=sys.stderr, flush=True)
    own = pd.concat(_own(model, evaluation), ignore_index=True)
    parts, metrics, tags = [own.assign(dataset="")], mean_metrics(m.REGRET.at(m.TEST), own.regret), []
    for name, split in evaluation.others.items():
        other = pd.concat(_other(model, evaluation, name, split), ignore_index=True)
        parts.append(other.assign(dataset=name))
        tags.append(f"{name}: digest {split.digest}, {len(other)} images")
        for column, metric in m.OOD_SCORES.items():
            # More regret is less likely.
            sign = -1 if column == "regret" else 1
            found = auroc(sign * own[column].to_numpy(), sign * other[column].to_numpy())
            metrics |= with_error(metric.at(m.OOD, DATASET=name), *found)
        metrics |= mean_metrics(m.OOD_REGRET.at(m.OOD, DATASET=name), other.regret)
        metrics |= mean_metrics(m.OOD_LOG_PX.at(m.OOD, DATASET=name), other.log_px)
        if inference != "exact":
            share = other.unreliable.mean()
            worse = max(own.unreliable.mean(), share)
            for metric, doubt in ((m.AUROC_LOG_PX, worse), (m.AUROC_COMPLEXITY, worse), (m.OOD_LOG_PX, share)):
                metrics[metric.doubt.format(metric.at(m.OOD, DATASET=name))] = doubt
    return Results(metrics, {"evaluation.ood_data": "; ".join(tags)}, {"ood.parquet": pd.concat(parts)})


def likelihood_regret(model: LatentModel, x: Tensor, q: Posterior, generator: torch.Generator) -> Tensor:
    """L(x; q*) - L(x; q) of images (B, C, H, W), (B,), in nats: what the model's own posteriors ``q`` lose.

    q* is the best member of q's family for each image alone that steps from q find with the decoder frozen, or q where
    that is better (Xiao et al. 2020; there the steps move the encoder's weights or, as here, the parameters of q). Both
    ELBOs are of the same noise, new to the search, so that the mean is at least 0 up to the noise that is left. 0 where
    posteriors are exact.
    """
    if model.axes["inference"] == "exact":
        return x.new_zeros(len(x), dtype=torch.float64)
    candidates = q, fit_posterior(model, x, q, FIT_STEPS, FIT_LR, STEP_SAMPLES, generator)

    def elbo(of: Posterior) -> Tensor:
        return log_weights(model, x, of, ELBO_SAMPLES, generator).mean(0)

    best = choose(candidates, torch.stack([elbo(one) for one in candidates]))
    fresh = generator.get_state()
    found = elbo(best)
    generator.set_state(fresh)
    return found - elbo(q)


def complexity(x: Tensor) -> Tensor:
    """The length of each image (B, C, H, W) in [0, 1] as a PNG of 8 bits a number, (B,), in nats (Serrà et al. 2020).

    An upper bound on its description length; what all PNG files share cancels in every comparison.
    """
    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([8 * math.log(2) * _png_bytes(one) for one in pixels], dtype=torch.float64)


def _png_bytes(pixels: np.ndarray) -> int:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return file.tell()


def _own(model: LatentModel, evaluation: Evaluation) -> Iterator[pd.DataFrame]:
    """Rows of the evaluated test images, whose log p(x) is the one that is quoted."""
    found, generator = image_estimates(evaluation, m.TEST), evaluation.generator("ood own regret")
    known = found[found.posterior == model.axes["inference"]].set_index("index")[ESTIMATES]
    with counted("likelihood regret of own images", len(known)) as done:
        for whole, posteriors in evaluation.with_inferred(m.TEST):
            for rows in torch.arange(len(whole), device=whole.x.device).split(IMAGES_AT_ONCE):
                batch, q = whole[rows], posteriors[rows]
                yield _rows(model, batch, q, known.loc[batch.index.tolist()], generator)
                done(len(batch))


def _other(model: LatentModel, evaluation: Evaluation, name: str, split: Split) -> Iterator[pd.DataFrame]:
    """Rows of as many images of another data set, or of all where it has fewer."""
    config, size = evaluation.config, sum(map(len, evaluation.inferred(m.TEST)))
    images, posteriors, samples, steps = (
        evaluation.generator(f"ood {name} {purpose}") for purpose in ("images", "posteriors", "samples", "regret")
    )
    chosen = split.stratified(size, config.seed)
    with counted(f"log p(x) and regret of {name}", len(chosen)) as done:
        for rows in chosen.split(IMAGES_AT_ONCE):
            batch = model.observe(split.batch(rows), images)
            q = model.infer(batch, posteriors).detach()
            found = estimate_log_px(model, batch.x, q, config, samples)
            estimates = pd.DataFrame({key: getattr(found, key).cpu().numpy() for key in ESTIMATES})
            yield _rows(model, batch, q, estimates, steps)
            done(len(batch))


def _rows(
    model: LatentModel, batch: Batch, q: Posterior, estimates: pd.DataFrame, generator: torch.Generator
) -> pd.DataFrame:
    rows = image_rows(batch, model.axes["inference"], {"regret": likelihood_regret(model, batch.x, q, generator)})
    rows = pd.concat([rows, estimates.reset_index(drop=True)], axis=1)
    return rows.assign(complexity=rows.log_px + complexity(batch.x).numpy())
