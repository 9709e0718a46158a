"""The first part of a dataset's page: headline numbers, how they were measured, and how sure a comparison is."""

from collections.abc import Sequence

from elbolab.evaluation.metrics import (
    ACCURACY,
    BIAS,
    CLASS_PRESERVATION,
    LOG_PX,
    POSTERIOR_ELBO,
    SIMULATED,
    TEST,
    TRAIN,
)
from elbolab.report import blocks as b
from elbolab.report import plots, sentences
from elbolab.report.blocks import Block, Cell, Missing, Ref, Table
from elbolab.report.collect import SPLITS, Comparison, Entry, Row
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.tables import ACCURACY_SE, CONSTANT, OVER_SEEDS
from elbolab.support.number_formats import DASH, dagger, measured, percent
from elbolab.tracking.keys import LAST_EPOCH

SHOWN = sorted(OVER_SEEDS, key=lambda one: (one[0] is not LOG_PX, -list(SPLITS).index(one[1])))


def summary_blocks(comparison: Comparison) -> list[Block]:
    """Return the headline table, figure, sentences and the protocol."""
    rows: list[list[Cell]] = []
    for entry in comparison.entries:
        test, train = (comparison.summary(entry, split) for split in (TEST, TRAIN))
        numbers = [b.shown(LOG_PX, test), b.shown(LOG_PX, train), b.shown(POSTERIOR_ELBO, test), bias(entry)]
        accuracy = percent(test.get(ACCURACY.name), test.get(ACCURACY_SE))
        rows.append([*b.start(entry), *numbers, b.kept(test), accuracy])
    floor = {row["split"]: row for row in comparison.tables["summary"] if row.get("posterior") == "none"}
    if floor:
        values = [b.shown(LOG_PX, floor[split]) for split in (TEST, TRAIN)]
        rows.append([Ref(CONSTANT, slot=FLOOR_SLOT), b.short(floor[TEST]["run"]), *values, *[DASH] * 4])
    heads = [b.head(LOG_PX, TEST), b.head(LOG_PX, TRAIN), b.head(POSTERIOR_ELBO, TEST)]
    heads += map(b.head, (BIAS, CLASS_PRESERVATION, ACCURACY))
    caption = (
        "Mean ± standard error. Class kept: how often the classifier gives the reconstruction the same class, with the "
        "95% bootstrap interval over images."
    )
    return [
        *b.unevaluated(comparison.entries),
        *unconverged(comparison.latents),
        Table("summary", caption, ["Model", "Run", *heads], rows),
        *seed_blocks(comparison),
        *ranking(comparison, floor),
        *pair_blocks(comparison),
        *b.notes(sentences.protocol([entry for entry in comparison.latents if entry.evaluated])),
        *protocol(comparison),
    ]


def unconverged(entries: Sequence[Entry]) -> list[Missing]:
    """Return a notice for each of the entries whose training has not converged, with the command that trains longer."""
    return [
        Missing(
            f"{entry.label} has not converged: its validation score was still improving when the training ended, after "
            f"{entry.run.tags.get(LAST_EPOCH, entry.run.params.get('epochs', ''))} epochs. No sentence ranks it.",
            f"elbolab {entry.model} --resume {entry.run.id} --new-run --schedule plateau --epochs 300",
            "Not converged",
        )
        for entry in entries
        if entry.unconverged
    ]


def bias(entry: Entry) -> str:
    """Write by how much an entry's log p(x) is too low at most; exact ones by nothing."""
    return "exact" if entry.inference == "exact" else b.shown(BIAS, entry.measures(BIAS, SIMULATED))


def ranking(comparison: Comparison, floor: dict[str, Row]) -> list[b.Figures]:
    """Return the figure of all mean log p(x), test beside training."""
    entries = [entry for entry in comparison.latents if entry.evaluated]
    lines = [(entry.label, entry.slot, {s: comparison.summary(entry, s) for s in (TEST, TRAIN)}) for entry in entries]
    lines += [(CONSTANT, FLOOR_SLOT, floor)] if floor else []
    series = []
    for name, slot, by in lines:
        mean, error = ([by[split][key] for split in (TEST, TRAIN) if by[split]] for key in LOG_PX.names)
        series.append(Series(name, slot, [], mean, error))
    if not series:
        return []
    title = f"Mean {LOG_PX.label} of an image ({LOG_PX.unit})"
    svg = plots.ranking(f"ranking-{entries[0].run.id[:8]}", title, series)
    caption = "Filled: test images; hollow: training images. Bars: one standard error."
    return [b.Figures(caption, [b.ref(entry) for entry in entries], [svg], wide=True)]


def protocol(comparison: Comparison) -> list[Table]:
    """Return how each density was evaluated, from its run's tags."""
    rows: list[list[Cell]] = []
    for entry in comparison.latents:
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
    return [Table("protocol", caption, heads, rows, left=3)] if rows else []


def method(entry: Entry) -> str:
    """Write how an entry's log p(x) was estimated."""
    tags = {name: entry.run.tags.get(f"evaluation.{name}") for name in ("method", "tolerance", "samples")}
    if tags["method"] == "auto":
        return f"error of an image at most {tags['tolerance']} nats"
    return f"{tags['samples'] or DASH} importance samples"


def seed_blocks(comparison: Comparison) -> list[Table]:
    """Return the means over seeds of the models that have several, with their 95% intervals."""
    found = {(row["model"], row["metric"]): row for row in comparison.tables["seeds"]}
    rows: list[list[Cell]] = []
    for entry in [entry for entry in comparison.entries if len(entry.runs) > 1]:
        cells = []
        for metric, split in SHOWN:
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
    heads = [b.head(metric, split if metric.unit == "nats" else "") for metric, split in SHOWN]
    return [Table("seeds", caption, ["Model", "Runs", "Seeds", *heads], rows)] if rows else []


def pair_blocks(comparison: Comparison) -> list[Block]:
    """Return the differences in log p(x) of every two models on the same images."""
    rows: list[list[Cell]] = []
    entries = {entry.label: entry for entry in comparison.entries}
    for row in comparison.tables["pairs"]:
        one, other = entries[row["model"]], entries[row["other"]]
        doubtful = one.unreliable(row["split"]) or other.unreliable(row["split"])
        shares = [percent(row["above"]), percent(row["below"])]
        numbers = [SPLITS[row["split"]], str(row["images"]), *b.difference(row, doubtful), *shares]
        rows.append([*b.start(one), *b.start(other), *numbers])
    several = [f"{entry.label} over {len(entry.runs)}" for entry in comparison.latents if len(entry.runs) > 1]
    averaged = f" Log p(x) of an image is first averaged over seeds: {', '.join(several)}." if several else ""
    caption = (
        "Image by image: log p(x) under the first model less that under the second, nats: the mean over the split by "
        "regression from the images that both were evaluated on, with its 95% interval; and the share of these images "
        "that each explains better. The interval is over images, for these trainings as they are."
        f"{averaged}"
    )
    heads = ["Model", "Run", "Minus", "Run", "Split", "Images", "Difference", "95% interval", "First better"]
    said = [
        sentences.pair(row, entries)
        for row in comparison.tables["pairs"]
        if row["other"] == comparison.latents[0].label
        # What more training would change is no ranking.
        and not any(entries[row[who]].unconverged for who in ("model", "other"))
    ]
    return [Table("pairs", caption, [*heads, "Second better"], rows, left=5), *b.notes(*said)] if rows else []
