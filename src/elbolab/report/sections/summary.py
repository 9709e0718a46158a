"""The first part of a dataset's page: headline numbers, how they were measured, and how sure a comparison is."""

from typing import Any

from elbolab.evaluation.metrics import ACCURACY, CLASS_PRESERVATION, ESS, LOG_PX, POSTERIOR_ELBO, TEST, TRAIN
from elbolab.report import plots, sentences
from elbolab.report.blocks import Cell, Figures, Ref, Table, head, kept, notes, ref, short, shown, start, unevaluated
from elbolab.report.collect import Comparison, Row
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.sections.comparisons import pair_blocks, seed_blocks
from elbolab.report.tables import ACCURACY_SE, CONSTANT
from elbolab.support.number_formats import DASH, percent


def summary_blocks(comparison: Comparison) -> list[Any]:
    """Return the headline table, figure, sentences and the protocol."""
    rows: list[list[Cell]] = []
    for entry in comparison.entries:
        test, train = (comparison.summary(entry, split) for split in (TEST, TRAIN))
        numbers = [shown(LOG_PX, test), shown(LOG_PX, train), shown(POSTERIOR_ELBO, test), shown(ESS, test)]
        accuracy = percent(test.get(ACCURACY.name), test.get(ACCURACY_SE))
        rows.append([*start(entry), *numbers, kept(test), accuracy])
    floor = {row["split"]: row for row in comparison.tables["summary"] if row.get("posterior") == "none"}
    if floor:
        values = [shown(LOG_PX, floor[split]) for split in (TEST, TRAIN)]
        rows.append([Ref(CONSTANT, slot=FLOOR_SLOT), short(floor[TEST]["run"]), *values, *[DASH] * 4])
    heads = [head(LOG_PX, TEST), head(LOG_PX, TRAIN), head(POSTERIOR_ELBO, TEST)]
    heads += map(head, (ESS, CLASS_PRESERVATION, ACCURACY))
    caption = (
        "Mean ± standard error. Class kept: how often the classifier gives the reconstruction the same class, with the "
        "95% bootstrap interval over images."
    )
    return [
        *unevaluated(comparison.entries),
        Table("summary", caption, ["Model", "Run", *heads], rows),
        *seed_blocks(comparison),
        *ranking(comparison, floor),
        *pair_blocks(comparison),
        *notes(sentences.protocol([entry for entry in comparison.latents if entry.evaluated])),
        *protocol(comparison),
    ]


def ranking(comparison: Comparison, floor: dict[str, Row]) -> list[Figures]:
    """Return the figure of all mean log p(x), test beside training."""
    entries = [entry for entry in comparison.latents if entry.evaluated]
    lines = [
        (entry.label, entry.slot, [comparison.summary(entry, split) for split in (TEST, TRAIN)]) for entry in entries
    ]
    lines += [(CONSTANT, FLOOR_SLOT, [floor[split] for split in (TEST, TRAIN)])] if floor else []
    mean, error = LOG_PX.names
    series = [
        Series(name, slot, [], [row[mean] for row in rows if row], [row[error] for row in rows if row])
        for name, slot, rows in lines
    ]
    if not series:
        return []
    svg = plots.ranking(f"ranking-{entries[0].run.id[:8]}", f"Mean {LOG_PX.label} of an image", LOG_PX.unit, series)
    caption = "Filled: test images; hollow: training images. Bars: one standard error."
    return [Figures(caption, [ref(entry) for entry in entries], [svg], wide=True)]


def protocol(comparison: Comparison) -> list[Table]:
    """Return how each density was evaluated, from its run's tags."""
    rows: list[list[Cell]] = []
    for entry in comparison.latents:
        posterior, samples, images, seed = (
            entry.run.tags.get(f"evaluation.{name}", DASH) for name in ("posterior", "samples", "images", "seed")
        )
        rows.append([*start(entry), posterior, DASH if posterior == "exact" else samples, images, seed])
    caption = (
        "How to read: log p(x) is estimated by importance sampling from the posterior named here, or exact where it "
        "says so, on as many images of each split; ± is one standard error of the mean over images, with the noise of "
        "the estimate in it. Every number is of the run whose id stands beside it."
    )
    heads = ["Model", "Run", "Posterior", "Samples an image", "Images a split", "Seed"]
    return [Table("protocol", caption, heads, rows, left=3)] if rows else []
