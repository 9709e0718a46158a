"""The numbered sections of a report's page: classifier, amortized model, latent optimisation, others, likelihood."""

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

import numpy as np

from elbolab.report import plots
from elbolab.report.blocks import (
    Cell,
    Figures,
    Gallery,
    Picture,
    Ref,
    Table,
    absent,
    curve_blocks,
    epochs,
    heat,
    notes,
    picture,
    pictures,
    ref,
    short,
    start,
    ten_table,
)
from elbolab.report.collect import SPLITS, Comparison, Entry, Row
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.sections.ablations import initialisation_blocks
from elbolab.report.tables import FLOOR
from elbolab.support.number_formats import DASH, dagger, kept, mean_log_px, measured, number, percent

LOSSES = (("loss", "Total loss", "nats"), ("mse", "Mean squared error", "per pixel"), ("kl", "KL divergence", "nats"))
CLASSIFIER = (("loss", "Cross entropy", "nats"), ("accuracy", "Accuracy", "rate"))


def classifier_blocks(comparison: Comparison) -> list[Any]:
    """Return the classifier's curves, accuracies and confusion."""
    entries = [entry for entry in comparison.entries if not entry.latent]
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in SPLITS:
            if row := comparison.summary(entry, split):
                rate = percent(row["accuracy"], row["accuracy_se"])
                rows.append([*start(entry), split, str(row["images"] or DASH), rate])
    head = ["Model", "Run", "Split", "Images", "Accuracy"]
    return [
        *absent(comparison, ["cnn"], entries),
        *curve_blocks(comparison, entries, CLASSIFIER),
        *([Table("accuracy", "Accuracy ± binomial standard error.", head, rows, left=3)] if rows else []),
        *heat(entries, "Confusion on test images.", "true", "predicted"),
        *notes(comparison, "classifier"),
    ]


def vae_blocks(comparison: Comparison) -> list[Any]:
    """Return the amortized model's blocks."""
    entries = comparison.of("vae")
    return [*absent(comparison, ["vae"], entries), *own_blocks(comparison, entries)]


def other_blocks(comparison: Comparison) -> list[Any]:
    """Return the blocks of the latent-variable models that have no section of their own."""
    return own_blocks(comparison, [entry for entry in comparison.latents if entry.model not in ("vae", "latent_opt")])


def own_blocks(comparison: Comparison, entries: Sequence[Entry]) -> list[Any]:
    """Return the curves, reconstructions, class changes and samples of some models."""
    if not entries:
        return []
    models = {entry.model for entry in entries}
    grids = [
        picture(entry, f"reconstructions_{split}", epoch, f"epoch {epoch}, {entry.label}, {SPLITS[split]}")
        for entry in entries
        for epoch in epochs([entry], "reconstructions_train", "reconstructions_val")
        for split in ("train", "val")
    ]
    samples = [
        picture(entry, "samples", epoch, f"epoch {epoch}, {entry.label} samples")
        for entry in entries
        for epoch in epochs([entry], "samples")
    ]
    return [
        *curve_blocks(comparison, entries, LOSSES),
        *notes(comparison, "curves", *models),
        *pictures("The same ten digits at each epoch, originals above, reconstructions below.", grids),
        *ten_table(entries),
        *notes(comparison, "classes", *models),
        *pictures("Samples decoded from the prior: the same noise at each epoch.", samples),
    ]


def latent_blocks(comparison: Comparison) -> list[Any]:
    """Return latent optimisation beside the amortized model, and the effect of its initialisation."""
    own = comparison.of("latent_opt")
    entries = comparison.of("vae", "latent_opt") if own else []
    blocks: list[Any] = absent(comparison, ["vae", "latent_opt"], own)
    blocks += curve_blocks(comparison, entries, LOSSES) + notes(comparison, "curves", "latent_opt")
    for split in ("val", "train"):
        key = f"reconstructions_{split}"
        grids = [
            picture(entry, key, epoch, f"epoch {epoch}, {entry.label}")
            for epoch in epochs(entries, key)
            for entry in entries
        ]
        blocks += pictures(f"{SPLITS[split].capitalize()} digits, originals above, reconstructions below.", grids)
    blocks += ten_table(entries) + notes(comparison, "classes", "latent_opt")
    logged = [set(entry.pictures["samples"]) for entry in entries if entry.pictures["samples"]]
    last = max(set.intersection(*logged), default=0) if logged else 0
    alike = len({entry.run.params.get("latent_dim") for entry in entries}) == 1
    caption = "Samples decoded from the prior" + (": the same noise for every run." if alike else ".")
    samples = [picture(entry, "samples", last, f"epoch {last}, {entry.label} samples") for entry in entries]
    starts = [block for entry in own for block in initialisation_blocks(comparison, entry)]
    return [*blocks, *pictures(caption, samples), *starts]


def likelihood_blocks(comparison: Comparison) -> list[Any]:
    """Return single images, means by class, means by split, and class preservation."""
    entries = comparison.latents
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in SPLITS:
            row = comparison.summary(entry, split)
            if not isnan(row.get("class_preservation", nan)):
                rates = [percent(row["accuracy_original"]), percent(row["accuracy_reconstruction"])]
                rows.append([*start(entry), split, kept(row), *rates])
    head = ["Model", "Run", "Split", "Class kept", "Accuracy, originals", "Accuracy, reconstructions"]
    caption = (
        "What the classifier makes of the reconstructions; class kept with its 95% bootstrap interval over images."
    )
    confusion = "The classifier's class of each test original against that of its reconstruction."
    return [
        *absent(comparison, ["vae", "latent_opt", "ppca"], entries),
        *gallery(comparison),
        *digit_blocks(comparison),
        *mean_blocks(comparison),
        *([Table("class preservation", caption, head, rows, left=3)] if rows else []),
        *heat(entries, confusion, "original", "reconstruction"),
    ]


def gallery(comparison: Comparison) -> list[Gallery]:
    """Return the example images with each run's reconstruction and log p(x)."""
    entries = [entry for entry in comparison.latents if entry.examples]
    if not entries:
        return []
    numbers = {(row["model"], row["index"]): row for row in comparison.tables["images"]}
    floor = _floor(comparison.tables["images"])
    first, rows = entries[0].examples, []
    for place, (index, digit) in enumerate(zip(first["index"].tolist(), first["label"].tolist(), strict=True)):
        cells: list[tuple[Picture | None, str]] = []
        for entry in entries:
            row = numbers.get((entry.label, index), {})
            shown = entry.examples["reconstructions"][entry.examples["index"] == index]
            again = single(shown[0], f"{digit} reconstructed by {entry.label}") if len(shown) else None
            cells.append((again, dagger(measured(row.get("log_px"), row.get("std_err")), row.get("unreliable"))))
        cells += [(None, number(numbers.get((one.text, index), {}).get("log_px"))) for one in floor]
        rows.append((digit, index, single(first["originals"][place], f"original {digit}"), cells))
    caption = (
        "(a) Single test images: reconstruction and log p(x) in nats ± noise of the estimate; constant: what the image "
        "is worth if the mean training image is what it is decoded to."
    )
    return [Gallery(caption, [*map(ref, entries), *floor], rows)]


def single(image: np.ndarray, alt: str) -> Picture:
    """Return one image (H, W, C) as a picture."""
    return Picture(plots.png(image), alt, image.shape[1], image.shape[0])


def digit_blocks(comparison: Comparison) -> list[Any]:
    """Return mean log p(x) of each class on test images, as figure and table."""
    rows = {(row["model"], row["digit"]): row for row in comparison.tables["digits"] if row["split"] == "test"}
    digits = sorted({digit for _, digit in rows})
    entries = [entry for entry in comparison.entries if any(model == entry.label for model, _ in rows)]
    if not entries:
        return []
    names = [*map(ref, entries), *_floor(comparison.tables["digits"])]
    series = []
    for one in names:
        have = [rows[one.text, digit] for digit in digits if (one.text, digit) in rows]
        x, y, error = ([row[name] for row in have] for name in ("digit", "log_px", "log_px_se"))
        assert one.slot is not None
        series.append(Series(one.text, one.slot, x, y, error))
    empty: Row = {}
    body: list[list[Cell]] = []
    for digit in digits:
        line = [rows.get((one.text, digit), empty) for one in names]
        body.append([str(digit), *(mean_log_px(row) for row in line)])
    svg = plots.by_class(f"digits-{entries[0].run.id[:8]}", "(b) Mean test log p(x) of each class", "nats", series)
    return [
        Figures("Bars: one standard error over images.", names, [svg], wide=True),
        Table("digits", "(b) The same numbers.", ["Class", *names], body, left=1),
        *notes(comparison, "digits"),
    ]


def _floor(rows: Sequence[Row]) -> list[Ref]:
    """Name the constant image with the run that has its numbers, where the rows of a table have any."""
    return [Ref(FLOOR, row["run"], FLOOR_SLOT) for row in rows if row["model"] == FLOOR][:1]


def mean_blocks(comparison: Comparison) -> list[Any]:
    """Return means by split of every run and posterior, with the exact baseline and the floor."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in comparison.tables["summary"]:
        if "log_px" in row:
            groups.setdefault((row["model"], row["run"], row["posterior"]), {})[row["split"]] = row
    rows: list[list[Cell]] = []
    for (model, run, posterior), by in groups.items():
        slot = FLOOR_SLOT if posterior == "none" else comparison.runs[run][1].slot
        means = [mean_log_px(by.get(split, {})) for split in SPLITS]
        counts = ", ".join(dict.fromkeys(str(row["images"] or DASH) for row in by.values()))
        rows.append([Ref(model, slot=slot), short(run), posterior, *means, counts])
    head = ["Model", "Run", "Posterior", "Training", "Validation", "Test", "Images"]
    caption = "(c) Mean log p(x) ± standard error, nats; exact where the posterior is. The constant image is the floor."
    return [Table("means", caption, head, rows, left=3), *notes(comparison, "means")] if rows else []
