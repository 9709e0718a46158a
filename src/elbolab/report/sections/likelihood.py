"""The section of the likelihood: single images, means by class and by split, and class preservation."""

from collections.abc import Sequence
from itertools import product
from math import isnan, nan

import numpy as np

from elbolab.evaluation.metrics import (
    ACCURACY_ORIGINAL,
    ACCURACY_RECONSTRUCTION,
    BITS_PER_DIM,
    CLASS_PRESERVATION,
    LOG_PX,
    TEST,
)
from elbolab.report import blocks as b
from elbolab.report import plots, sentences
from elbolab.report.blocks import Block, Cell, Picture, Ref, Table
from elbolab.report.collect import SPLITS, Comparison, Row
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.tables import CONSTANT
from elbolab.support.number_formats import DASH, dagger, measured, number, percent


def likelihood_blocks(comparison: Comparison) -> list[Block]:
    """Return single images, means by class, means by split, and class preservation."""
    entries = comparison.latents
    rows: list[list[Cell]] = []
    for entry, split in product(entries, SPLITS):
        row = comparison.summary(entry, split)
        if not isnan(row.get(CLASS_PRESERVATION.name, nan)):
            rates = [percent(row[metric.name]) for metric in (ACCURACY_ORIGINAL, ACCURACY_RECONSTRUCTION)]
            rows.append([*b.start(entry), SPLITS[split], b.kept(row), *rates])
    heads = ["Model", "Run", "Split", *map(b.head, (CLASS_PRESERVATION, ACCURACY_ORIGINAL, ACCURACY_RECONSTRUCTION))]
    caption = (
        "What the classifier makes of the reconstructions: the share that keeps the class it gives the original, with "
        "its 95% interval over images, and its accuracy on originals and on reconstructions."
    )
    by_class = digit_blocks(comparison)
    confusion = "The classifier's class of each original against that of its reconstruction."
    return [
        *gallery(comparison),
        *by_class,
        *mean_blocks(comparison, "c" if by_class else "b"),
        *([Table("class preservation", caption, heads, rows, left=3)] if rows else []),
        *b.heat(comparison, entries, confusion, "original", "reconstruction"),
    ]


def gallery(comparison: Comparison) -> list[b.Gallery]:
    """Return the example images with each run's reconstruction and log p(x)."""
    entries = [entry for entry in comparison.latents if entry.examples]
    if not entries:
        return []
    numbers = {(row["model"], row["index"]): row for row in comparison.tables["images"]}
    floor = _floor(comparison.tables["images"])
    first, rows = entries[0].examples, []
    has_classes = len(set(first["label"].tolist())) > 1
    for place, (index, digit) in enumerate(zip(first["index"].tolist(), first["label"].tolist(), strict=True)):
        cells: list[tuple[Picture | None, str]] = []
        for entry in entries:
            row = numbers.get((entry.label, index), {})
            found = entry.examples["reconstructions"][entry.examples["index"] == index]
            again = single(found[0], f"image {index} reconstructed by {entry.label}") if len(found) else None
            cells.append((again, dagger(measured(row.get("log_px"), row.get("std_err")), row.get("unreliable"))))
        cells += [(None, number(numbers.get((one.text, index), {}).get("log_px"))) for one in floor]
        shown = comparison.class_name(digit) if has_classes else DASH
        rows.append((shown, index, single(first["originals"][place], f"original {shown}"), cells))
    caption = (
        "(a) Single test images: reconstruction and log p(x) in nats ± noise of the estimate; constant: log p(x) if "
        "every image is decoded to the mean training image."
    )
    return [b.Gallery(caption, [*map(b.ref, entries), *floor], rows)]


def single(image: np.ndarray, alt: str) -> Picture:
    """Return one image (H, W, C) as a picture."""
    return Picture(plots.png(image), alt, image.shape[1], image.shape[0])


def digit_blocks(comparison: Comparison) -> list[Block]:
    """Return mean log p(x) of each class on test images, as figure and table."""
    rows = {(row["model"], row["digit"]): row for row in comparison.tables["digits"] if row["split"] == TEST}
    digits = sorted({digit for _, digit in rows})
    entries = [entry for entry in comparison.entries if any(model == entry.label for model, _ in rows)]
    # Images without labels are of one class.
    if not entries or len(digits) < 2:
        return []
    names = [*map(b.ref, entries), *_floor(comparison.tables["digits"])]
    series = []
    for one in names:
        have = [rows[one.text, digit] for digit in digits if (one.text, digit) in rows]
        x, y, error = ([row[name] for row in have] for name in ("digit", *LOG_PX.names))
        assert one.slot is not None
        series.append(Series(one.text, one.slot, x, y, error))
    classes = {digit: comparison.class_name(digit) for digit in digits}
    body = [[classes[digit], *(b.shown(LOG_PX, rows.get((one.text, digit), {})) for one in names)] for digit in digits]
    caption = (
        f"(b) The same numbers: mean {LOG_PX.label} of all test images of each class ± standard error, nats. Errors "
        "are those of one regression over all classes, and so about equal."
    )
    svg = plots.by_class(
        f"digits-{entries[0].run.id[:8]}", "(b) Mean test log p(x) of each class (nats)", series, classes
    )
    return [
        b.Figures("Bars: one standard error over images.", names, [svg], wide=True),
        Table("digits", caption, ["Class", *names], body, left=1),
        *b.notes(*(sentences.extremes(comparison, entry) for entry in comparison.latents)),
    ]


def _floor(rows: Sequence[Row]) -> list[Ref]:
    """Name the constant image with the run that has its numbers, where the rows of a table have any."""
    return [Ref(CONSTANT, row["run"], FLOOR_SLOT) for row in rows if row["model"] == CONSTANT][:1]


def mean_blocks(comparison: Comparison, letter: str) -> list[Block]:
    """Return means by split of every run and posterior, with the exact baseline and the constant image."""
    rows: list[list[Cell]] = []
    has_bits = any(not isnan(entry.metric(BITS_PER_DIM, TEST)) for entry in comparison.latents)
    for (model, run, posterior), by in comparison.by_split(LOG_PX).items():
        slot = FLOOR_SLOT if posterior == "none" else comparison.runs[run][1].slot
        means = [b.shown(LOG_PX, by.get(split, {})) for split in SPLITS]
        counts = ", ".join(dict.fromkeys(str(row["images"] or DASH) for row in by.values()))
        bits = [b.shown(BITS_PER_DIM, by.get(TEST, {}))] if has_bits else []
        rows.append([Ref(model, slot=slot), b.short(run), posterior, *means, *bits, counts])
    heads = ["Model", "Run", "Posterior", *(split.capitalize() for split in SPLITS.values())]
    heads += [*([b.head(BITS_PER_DIM, TEST)] if has_bits else []), "Images"]
    caption = (
        f"({letter}) Mean log p(x) of each split ± standard error, nats; exact where the posterior is. Constant image: "
        "every image decoded to the mean training image. Images: so many of each split were evaluated."
    )
    if has_bits:
        caption += " Bits per dimension: test log p(x), divided by -ln 2 and by the numbers of an image."
    found = [one for entry in comparison.latents for one in (sentences.train_test(entry), sentences.table(entry))]
    return [Table("means", caption, heads, rows, left=3), *b.notes(*found)] if rows else []
