"""The first part of a dataset's page: what it concludes, headline numbers, and how they were measured."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import ceil, isnan, nan

from elbolab.config.schema import Config
from elbolab.evaluation.metrics import (
    ACCURACY,
    BIAS,
    CLASS_PRESERVATION,
    LOG_PX,
    POSTERIOR_ELBO,
    SIMULATED,
    STEPS,
    TEST,
    TRAIN,
)
from elbolab.report import blocks as b
from elbolab.report import plots, sentences
from elbolab.report.blocks import Block, Card, Cards, Cell, Missing, Ref, Table
from elbolab.report.collect import SPLITS, Comparison, Entry
from elbolab.report.commands import train_again
from elbolab.report.differences import fitted_apart
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.sections.conclusion import conclusion_blocks
from elbolab.report.select import FITTED
from elbolab.report.tables import ACCURACY_SE, CONSTANT, OVER_SEEDS
from elbolab.support.number_formats import DAGGER, DASH, dagger, measured, number, percent
from elbolab.tracking.keys import CONVERGED, LAST_EPOCH
from elbolab.tracking.mlflow_reader import RunRecord

SHOWN = sorted(OVER_SEEDS, key=lambda one: (one[0] is not LOG_PX, -list(SPLITS).index(one[1])))


def summary_blocks(comparison: Comparison) -> list[Block]:
    """Return the conclusion, the headline numbers as cards, table and figure, the differences and the protocol."""
    rows: list[list[Cell]] = []
    for entry in comparison.latents:
        test, train = (comparison.summary(entry, split) for split in (TEST, TRAIN))
        numbers = [b.shown(LOG_PX, test), b.shown(LOG_PX, train), b.shown(POSTERIOR_ELBO, test), bias(entry)]
        rows.append([*b.start(entry), *numbers, b.kept(test), convergence(entry)])
        rows += fitted_row(comparison, entry)
    floor = {row["split"]: row for row in comparison.tables["summary"] if row.get("posterior") == "none"}
    if floor:
        values = [b.shown(LOG_PX, floor[split]) for split in (TEST, TRAIN)]
        rows.append([Ref(CONSTANT, slot=FLOOR_SLOT), b.short(floor[TEST]["run"]), *values, *[DASH] * 4])
    heads = [b.head(LOG_PX, TEST), b.head(LOG_PX, TRAIN), b.head(POSTERIOR_ELBO, TEST)]
    heads += map(b.head, (BIAS, CLASS_PRESERVATION))
    caption = (
        "Log-densities: nats an image, mean over all images of the split ± its standard error, of these images and not "
        "of others like them. Bias at most: by how much the estimates may be too low. Class kept: how many test "
        "reconstructions the classifier gives the class of the original, with its 95% interval over images. Converged: "
        "whether the validation score had stopped improving at the end."
    )
    if any(map(partial(fitted_row, comparison), comparison.latents)):
        caption += (
            " Fitted posteriors: the decoder of a model with an encoder, with a posterior that gradient steps fit to "
            "each image in place of the encoder's; log p(x) is the same."
        )
    return [
        *conclusion_blocks(comparison),
        Cards([card(comparison, entry) for entry in comparison.entries]),
        *b.lost(comparison.lost),
        *b.unevaluated(comparison.entries),
        *unconverged(comparison.latents),
        *([Table("summary", caption, ["Model", "Run", *heads, "Converged"], rows)] if rows else []),
        *fitted_notes(comparison.latents),
        *seed_blocks(comparison),
        *ranking(comparison),
        *pair_blocks(comparison),
        *b.notes(sentences.protocol([entry for entry in comparison.latents if entry.evaluated])),
        *protocol(comparison),
    ]


def card(comparison: Comparison, entry: Entry) -> Card:
    """Return a run's headline number."""
    row = comparison.summary(entry, TEST)
    if entry.latent:
        metric, error = LOG_PX, row.get(LOG_PX.error_names[0], nan)
        value = dagger(number(row.get(LOG_PX.name), error=error), row.get("unreliable"))
        unit = f", {LOG_PX.unit}" + (", unreliable" if DAGGER in value else "")
    else:
        metric, value, error, unit = ACCURACY, percent(row.get(ACCURACY.name)), 100 * row.get(ACCURACY_SE, nan), ""
    spread = "" if isnan(error) or not error else f"± {number(error, 2 if entry.latent else 1, error)}"
    title = f"test {metric.label[:1].lower()}{metric.label[1:]}{unit}"
    return Card(b.ref(entry), value, spread, b.marked(title, entry) if entry.latent else title)


def convergence(entry: Entry) -> str:
    """Write whether an entry's trainings have converged."""
    return "closed form" if entry.closed_form else {True: "yes", False: "no", None: "not known"}[entry.converged]


def fitted_row(comparison: Comparison, entry: Entry) -> list[list[Cell]]:
    """Return what an encoder's decoder is worth under fitted posteriors, nothing where that was not measured."""
    row = comparison.summary(entry, TEST, FITTED)
    if not row or entry.inference == FITTED:
        return []
    name = Ref(f"{entry.label}, fitted posteriors", slot=entry.slot)
    elbo = b.shown(POSTERIOR_ELBO, row)
    return [[name, b.short(entry.run.id), DASH, DASH, elbo, DASH, b.kept(row), convergence(entry)]]


def fitted_notes(entries: Sequence[Entry]) -> list[b.Notes]:
    """Say how the decoders of encoders compare, under fitted posteriors, with the models that have no encoder."""
    pairs = [pair for pair in product(entries, entries) if pair[0].inference != FITTED == pair[1].inference]
    return b.notes(*(sentences.fitted(*pair, fitted_apart(*pair)) for pair in pairs if not b.state(*pair)))


def unconverged(entries: Sequence[Entry]) -> list[Missing]:
    """Return a notice for each entry that has not converged or may not have, with the command that trains it so."""
    notices = []
    for entry in [entry for entry in entries if not entry.converged]:
        if entry.origin:
            text = f"{entry.label} was trained elsewhere ({entry.origin}): on which images is not known, nor whether it"
            notices.append(Missing(f"{text} has converged. Nothing here ranks it.", "", "Adopted"))
            continue
        # Of several seeds the first that is to go on.
        run = next(run for run in entry.runs if run.tags.get(CONVERGED) != "true")
        epochs = run.tags.get(LAST_EPOCH, run.params.get("epochs", ""))
        text = f"{entry.label} ended after {epochs} epochs, before its validation score had stopped improving."
        if entry.converged is None:
            text = f"The run of {entry.label}, by an earlier version, does not say whether {epochs} epochs were enough."
        most = max(300, 2 * int(epochs or 0), 8 * patience(run))
        command = train_again(run, most)
        remedy = "Nothing here ranks it. A training from the beginning that ends when the score stops improving:"
        notices.append(Missing(f"{text} {remedy}", command, "Not converged"))
    return notices


def patience(run: RunRecord) -> int:
    """Over how many epochs a training like a run's judges its score: more than a few where these have few steps."""
    usual, steps = Config(), run.metrics.get(STEPS.at(TRAIN), 0.0)
    return max(usual.patience, ceil(usual.patience_steps * int(run.tags.get(LAST_EPOCH, 0)) / steps) if steps else 0)


def bias(entry: Entry) -> str:
    """Write by how much an entry's log p(x) is too low at most; exact ones by nothing."""
    return "exact" if entry.inference == "exact" else b.shown(BIAS, entry.measures(BIAS, SIMULATED))


def ranking(comparison: Comparison) -> list[b.Figures]:
    """Return the figure of the models' mean log p(x), test beside training; the constant image is far below most."""
    entries = [entry for entry in comparison.latents if entry.evaluated]
    series = []
    for entry in entries:
        by = [row for split in (TEST, TRAIN) if (row := comparison.summary(entry, split))]
        mean, error = ([row[key] for row in by] for key in LOG_PX.names)
        series.append(Series(b.marked(entry.label, entry), entry.slot, [], mean, error))
    if not series:
        return []
    title = f"Mean {LOG_PX.label} of an image ({LOG_PX.unit})"
    svg = plots.ranking(f"ranking-{entries[0].run.id[:8]}", title, series)
    caption = "Filled: test images; hollow: training images. Bars: one standard error."
    return [b.Figures(caption, [b.ref(entry) for entry in entries], [svg], wide=True)]


def protocol(comparison: Comparison) -> list[Table]:
    """Return how each density was evaluated, from its run's tags."""
    rows: list[list[Cell]] = []
    for entry in [entry for entry in comparison.latents if entry.evaluated]:
        names = ("posterior", "images", "seed")
        posterior, *others = (entry.run.tags.get(f"evaluation.{name}", DASH) for name in names)
        rows.append([*b.start(entry), posterior, method(entry) if posterior != "exact" else DASH, *others])
    caption = (
        "How to read: log p(x) is estimated, or exact where it says so, for as many images of each split. The mean is "
        "that over all images of the split, by regression on the ELBO of every image; ± is its standard error. "
        "(Evaluations by earlier versions: the mean over the evaluated images.) Bias: how far the estimate is too low "
        "at most, on images that the model makes. Every number is of the run whose id stands beside it."
    )
    heads = ["Model", "Run", "Posterior", "Estimate", "Images a split", "Seed"]
    return [Table("protocol", caption, heads, rows, left=4)] if rows else []


def method(entry: Entry) -> str:
    """Write how an entry's log p(x) was estimated."""
    tags = {name: entry.run.tags.get(f"evaluation.{name}") for name in ("method", "tolerance", "samples")}
    if tags["method"] == "auto":
        return f"error of an image at most {tags['tolerance']} nats"
    return f"{tags['samples'] or DASH} importance samples"


def seed_blocks(comparison: Comparison) -> list[Table]:
    """Return the means over seeds of the models that have several, with their 95% intervals."""
    found = {(row["model"], row["metric"]): row for row in comparison.tables["seeds"]}
    columns = [one for one in SHOWN if any(key == one[0].at(one[1]) for _, key in found)]
    rows: list[list[Cell]] = []
    for entry in [entry for entry in comparison.entries if len(entry.runs) > 1]:
        cells = []
        for metric, split in columns:
            row = found.get((entry.label, metric.at(split)), {})
            mean, half = row.get("mean"), row.get("half_width")
            text = percent(mean, half) if metric.unit == "share" else measured(mean, half)
            cells.append(dagger(text, bool(metric.doubt) and entry.unreliable(split, metric)))
        rows.append([Ref(entry.label, slot=entry.slot), b.shorts(entry), str(len(entry.runs)), *cells])
    caption = (
        "Over seeds: mean ± half of its 95% interval, by Student's t with one degree of freedom less than seeds. "
        "Differences and ablations average over seeds too; all else on the page, figures and pictures included, shows "
        "the newest run of each model, the first named here."
    )
    heads = [b.head(metric, split if metric.unit == "nats" else "") for metric, split in columns]
    return [Table("seeds", caption, ["Model", "Runs", "Seeds", *heads], rows)] if rows else []


def pair_blocks(comparison: Comparison) -> list[Block]:
    """Return the differences in log p(x) of every two models on the same images."""
    rows: list[list[Cell]] = []
    entries = {entry.label: entry for entry in comparison.entries}
    for row in comparison.tables["pairs"]:
        one, other = entries[row["model"]], entries[row["other"]]
        doubtful, why_not = one.unreliable(row["split"]) or other.unreliable(row["split"]), b.state(one, other)
        shares = [DASH] * 2 if why_not else [percent(row["above"]), percent(row["below"])]
        counts = [str(row["images"]), str(row["seeds"] or DASH)]
        numbers = [SPLITS[row["split"]], *counts, *b.difference(row, doubtful, why_not), *shares]
        rows.append([*b.start(one), *b.start(other), *numbers])
    several = [f"{entry.label} over {len(entry.runs)}" for entry in comparison.latents if len(entry.runs) > 1]
    averaged = f" Log p(x) of an image is first averaged over seeds: {', '.join(several)}." if several else ""
    caption = (
        "Image by image: log p(x) under the first model less that under the second, nats: the mean over the split by "
        "regression from the images that both were evaluated on, with its 95% interval, which need not be the "
        "difference of the two models' means; and the share of these images that each explains better. The interval is "
        "over images, for these trainings as they are. Where Seeds has a number, it covers that many trainings too."
        f"{averaged}"
    )
    heads = ["Model", "Run", "Minus", "Run", "Split", "Images", "Seeds", "Difference", "95% interval", "First better"]
    return [Table("pairs", caption, [*heads, "Second better"], rows, left=5)] if rows else []
