"""The part of the summary that says how sure it is: means over seeds, and differences image by image."""

from typing import Any

from elbolab.evaluation.metrics import LOG_PX
from elbolab.report import sentences
from elbolab.report.blocks import Cell, Ref, Table, head, notes, short, shorts
from elbolab.report.collect import SPLITS, Comparison
from elbolab.report.tables import OVER_SEEDS
from elbolab.support.number_formats import between, dagger, measured, number, percent

SHOWN = sorted(OVER_SEEDS, key=lambda one: (one[0] is not LOG_PX, -list(SPLITS).index(one[1])))


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
        rows.append([Ref(entry.label, slot=entry.slot), shorts(entry), str(len(entry.runs)), *cells])
    caption = (
        "Over seeds: mean ± half of its 95% interval, by Student's t with one degree of freedom less than seeds. "
        "Differences and ablations average over seeds too; all else on the page, figures and pictures included, shows "
        "the newest run of each model, the first named here."
    )
    heads = [
        "Model",
        "Runs",
        "Seeds",
        *(head(metric, split if metric.unit == "nats" else "") for metric, split in SHOWN),
    ]
    return [Table("seeds", caption, heads, rows)] if rows else []


def pair_blocks(comparison: Comparison) -> list[Any]:
    """Return the differences in log p(x) of every two models on the same images."""
    rows: list[list[Cell]] = []
    entries = {entry.label: entry for entry in comparison.entries}
    for row in comparison.tables["pairs"]:
        names = [
            cell
            for who, run in (("model", "run"), ("other", "other_run"))
            for cell in (Ref(row[who], slot=entries[row[who]].slot), short(row[run]))
        ]
        doubtful = any(entries[row[who]].unreliable(row["split"]) for who in ("model", "other"))
        difference = [dagger(number(row["mean"]), doubtful), between(row["low"], row["high"])]
        shares = [percent(row["above"]), percent(row["below"])]
        rows.append([*names, SPLITS[row["split"]], str(row["images"]), *difference, *shares])
    several = [f"{entry.label} over {len(entry.runs)}" for entry in comparison.latents if len(entry.runs) > 1]
    averaged = f" Log p(x) of an image is first averaged over seeds: {', '.join(several)}." if several else ""
    caption = (
        "Image by image: log p(x) under the first model less that under the second, nats, mean over the images that "
        "both were evaluated on, with its 95% interval from 10,000 bootstrap resamples of these images; and the share "
        "of them that each explains better. The interval is over images, for these trainings as they are."
        f"{averaged}"
    )
    heads = ["Model", "Run", "Less", "Run", "Split", "Images", "Difference", "95% interval", "First better"]
    said = [
        sentences.pair(row, comparison.latents)
        for row in comparison.tables["pairs"]
        if row["other"] == comparison.latents[0].label
    ]
    return [Table("pairs", caption, [*heads, "Less better"], rows, left=5), *notes(*said)] if rows else []
