"""The inference gap: how far the ELBO of q is below log p(x), and how much of it a better q of its family would win."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from elbolab.config.schema import EvaluateConfig
from elbolab.data.batches import Batch
from elbolab.evaluation import metrics as m
from elbolab.evaluation.annealing import PriorStart, annealed_estimate, bidirectional_bounds
from elbolab.evaluation.base import Evaluation, Results, image_rows, with_error
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.likelihood import image_estimates
from elbolab.evaluation.split_means import split_mean
from elbolab.evaluation.weights import Estimate
from elbolab.models.fitting import Q, choose, fit_posterior
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import POSTERIORS, Posterior
from elbolab.support.counters import counted

# All chains of so many images are one batch.
CHAINS_AT_ONCE = 2000


def gap(evaluation: Evaluation) -> Results:
    """log p(x) - L[q] split into log p(x) - L[q*] and L[q*] - L[q], image by image (Cremer et al. 2018, eqs. 5 to 7).

    log p(x) is the estimate that is quoted (or exact). With ``ais_distributions`` it is annealed from the prior too,
    and the larger counts: both are lower bounds in expectation, the larger a little too high where they are close.
    Bidirectional Monte Carlo on images that the model makes then says how tight AIS is. q is the model's own, q* the
    best member of its family that local optimisation finds, or q where that is better; in nats. With
    ``local_family=all`` the same is found in every family. Means are over the whole split, by regression on the ELBO of
    every image.
    """
    model, config = evaluation.model, evaluation.config
    if not isinstance(model, LatentModel) or not config.gap_images:
        return Results()
    parts, annealed = [], config.ais_distributions > 0
    with counted("inference gap", (3 if annealed else 2) * config.gap_images) as done:
        for split in ("train", "test"):
            generator = evaluation.generator(f"gap {split}")
            for batch, posteriors in _chosen(evaluation, split):
                parts.append(_rows(model, evaluation, batch, posteriors, generator))
                done(len(batch))
        simulated = _simulated(model, evaluation, evaluation.generator("gap simulated"), done) if annealed else {}
    table = pd.concat(parts, ignore_index=True)
    metrics = dict(simulated)
    for split, rows in table.groupby("split", sort=False):
        known = evaluation.population(str(split)).elbo.to_frame()
        if annealed:
            metrics[m.AIS_ACCEPTANCE.at(str(split))] = rows.ais_acceptance.mean()
        for stored, part in rows.set_index("index").groupby((rows.posterior == "table").to_numpy(), sort=False):
            for column, metric in m.GAP_COLUMNS.items():
                if annealed or metric is not m.LOG_PX_AIS:
                    key = (m.STORED[metric] if stored else metric).at(str(split))
                    metrics |= with_error(key, *split_mean(pd.Series(part[column]), known))
            if not stored and config.local_family == "all":
                for family, metric in product(POSTERIORS, (m.ELBO_BEST_OF, m.APPROXIMATION_GAP_OF)):
                    key = metric.at(str(split), FAMILY=family)
                    metrics |= with_error(key, *split_mean(pd.Series(part[key.partition("/")[2]]), known))
    tags = {
        "evaluation.ais": f"{config.ais_chains} chains, {config.ais_distributions} distributions, "
        f"{config.ais_leapfrog} leapfrog steps, {config.ais_schedule} schedule, from {config.ais_start}, "
        f"{config.gap_images} images, seed {config.seed}"
        if annealed
        else f"none, {config.gap_images} images, seed {config.seed}",
        "evaluation.local_optimisation": f"{config.local_steps} Adam steps at rate {config.local_lr:g} falling to 0, "
        f"{config.local_samples} samples, start: {config.local_start}, families: {config.local_family}",
    }
    return Results(metrics, tags, {"gap.parquet": table})


def best_of_family(
    model: LatentModel,
    x: Tensor,
    starts: Sequence[Q],
    config: EvaluateConfig,
    generator: torch.Generator | None = None,
    known: Sequence[Q] = (),
) -> Q:
    """q*, the member of the starts' family of highest ELBO for each image (B, C, H, W): the best of a search from each
    start and of those that are ``known``.
    """
    found = [
        fit_posterior(model, x, start, config.local_steps, config.local_lr, config.local_samples, generator)
        for start in starts
    ]
    found += known
    return choose(found, torch.stack([log_weights(model, x, q, config.samples, generator).mean(0) for q in found]))


def _in_every_family(
    model: LatentModel, x: Tensor, best: Posterior, config: EvaluateConfig, generator: torch.Generator | None
) -> dict[str, Posterior]:
    """q* of each family, where ``best`` is that of the model's own: a search begins at what the family before, which is
    narrower, has found. That of the model's own family may be a better one than ``best``.
    """
    found: dict[str, Posterior] = {}
    narrower = best
    for name, family in POSTERIORS.items():
        if narrower is best and isinstance(best, family):
            found[name] = best
        else:
            start = family.of(narrower)
            known = [start, best] if isinstance(best, family) else [start]
            found[name] = best_of_family(model, x, [start], config, generator, known=known)
        narrower = found[name]
    return found


def _chosen(evaluation: Evaluation, split: str) -> Iterator[tuple[Batch, dict[str, Posterior]]]:
    """The first ``gap_images`` of a split's evaluated images, those of one batch of chains at once, with posteriors."""
    assert isinstance(evaluation.model, LatentModel)
    left, own = evaluation.config.gap_images, evaluation.model.axes["inference"]
    for batch, posteriors in evaluation.with_posteriors(split, _images_at_once(evaluation.config)):
        rows = torch.arange(min(left, len(batch)), device=batch.x.device)
        yield batch[rows], {name: q[rows] for name, q in posteriors.items() if name in (own, "table")}
        if not (left := left - len(rows)):
            return


def _images_at_once(config: EvaluateConfig) -> int:
    return max(1, CHAINS_AT_ONCE // config.ais_chains)


def _rows(
    model: LatentModel,
    evaluation: Evaluation,
    batch: Batch,
    posteriors: dict[str, Posterior],
    generator: torch.Generator,
) -> pd.DataFrame:
    config, x = evaluation.config, batch.x
    name, q = next(iter(posteriors.items()))
    own = list(posteriors.values())
    starts = own if config.local_start in ("q", "both") else []
    if config.local_start in ("prior", "both"):
        mean, variance = (value.expand_as(q.mean) for value in model.prior.moments())
        starts = [*starts, q.like(mean, variance.log())]
    # A search may end below the q that there is.
    best = best_of_family(model, x, starts, config, generator, known=own)
    own_estimates = image_estimates(evaluation, batch.split).query("posterior == @name").set_index("index")
    quoted = x.new_tensor(own_estimates.log_px[batch.index.tolist()].to_numpy(), dtype=torch.float64)
    unknown = torch.full_like(quoted, math.nan)
    log_px, ais = quoted, Estimate(unknown, unknown, unknown, unknown, acceptance=unknown)
    if config.ais_distributions:
        start = q if config.ais_start == "q" else PriorStart(model.prior, len(x))
        ais = annealed_estimate(model, x, start, config, generator)
        # A closed form is not to be beaten by the noise of an estimate.
        log_px = quoted if model.exact_log_px(x) is not None else torch.maximum(ais.log_px, quoted)
    # New samples judge q*, since the best of noisy values is above its expectation, and q the same, whose noise then
    # is no part of the difference.
    fresh = generator.get_state()

    def judged(each: Posterior) -> Tensor:
        generator.set_state(fresh)
        return log_weights(model, x, each, config.samples, generator).mean(0)

    elbo_best, elbos = judged(best), {name: judged(each) for name, each in posteriors.items()}
    in_families: dict[str, Tensor] = {}
    if config.local_family == "all":
        after = generator.get_state()
        for family, each in _in_every_family(model, x, best, config, generator).items():
            bound = judged(each)
            in_families |= {m.ELBO_BEST_OF.name.format(FAMILY=family): bound}
            in_families |= {m.APPROXIMATION_GAP_OF.name.format(FAMILY=family): log_px - bound}
        # So that all else is what it is without them.
        generator.set_state(after)
    assert ais.acceptance is not None
    frames = []
    for name, elbo in elbos.items():
        columns = {
            "log_px_ais": ais.log_px,
            "log_px_ais_std_err": ais.std_err,
            "ais_acceptance": ais.acceptance,
            "log_px_is": quoted,
            "log_px": log_px,
            "elbo_best": elbo_best,
            "elbo": elbo,
            "approximation_gap": log_px - elbo_best,
            "amortization_gap": elbo_best - elbo,
            "inference_gap": log_px - elbo,
            **in_families,
        }
        frames.append(image_rows(batch, name, columns))
    return pd.concat(frames, ignore_index=True)


def _simulated(
    model: LatentModel, evaluation: Evaluation, generator: torch.Generator, done: Callable[[int], None]
) -> dict[str, float]:
    """Mean lower and upper bounds on log p(x) of as many images that the model itself makes, and their distance."""
    config, bounds = evaluation.config, []
    for count in torch.arange(config.gap_images).split(_images_at_once(config)):
        z = model.prior.sample((len(count),), generator)
        with torch.no_grad():
            x = model.likelihood.sample(model.decode(z), generator)
        start = PriorStart(model.prior, len(z))
        if config.ais_start == "q":
            nothing = torch.zeros(len(z), dtype=torch.int64, device=z.device)
            start = model.infer(Batch(x, nothing, nothing, "simulated", ""), generator)
        bounds.append(bidirectional_bounds(model, x, z, start, config, generator))
        done(len(z))
    lower, upper = (torch.cat(values) for values in zip(*bounds, strict=True))
    names = (m.LOG_PX_LOWER, m.LOG_PX_UPPER, m.BDMC_GAP)
    found = (lower.mean(), upper.mean(), (upper - lower).mean())
    return {name.at(m.SIMULATED): value.item() for name, value in zip(names, found, strict=True)}
