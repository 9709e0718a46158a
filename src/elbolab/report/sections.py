"""The numbered sections of a report's page: classifier, amortized model, latent optimisation, likelihood."""

from math import isnan, nan
from typing import Any

import numpy as np

from elbolab.report import figures
from elbolab.report.blocks import (
    DASH,
    FLOOR_SLOT,
    Cell,
    Figures,
    Gallery,
    Missing,
    Picture,
    Ref,
    Table,
    absent,
    curve_blocks,
    epochs,
    heat,
    measured,
    notes,
    number,
    percent,
    picture,
    pictures,
    ref,
    short,
    start,
    ten_table,
    train_command,
)
from elbolab.report.entries import SPLITS, Comparison, Row, differences, public
from elbolab.report.figures import Series
from elbolab.tracker import RunRecord

STARTS = ("zeros", "normal", "pca")
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
        *([Table("Accuracy ± binomial standard error.", head, rows, left=3)] if rows else []),
        *heat(entries, "Confusion on test images.", "true", "predicted"),
        *notes(comparison, "classifier"),
    ]


def vae_blocks(comparison: Comparison) -> list[Any]:
    """Return the amortized model's curves, reconstructions, class changes and samples."""
    entries = comparison.of("vae")
    grids = [
        picture(entry, f"reconstructions_{split}", epoch, f"epoch {epoch}, {SPLITS[split]}")
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
        *absent(comparison, ["vae"], entries),
        *curve_blocks(comparison, entries, LOSSES),
        *notes(comparison, "curves", "vae"),
        *pictures("The same ten digits at each epoch, originals above, reconstructions below.", grids),
        *ten_table(entries),
        *notes(comparison, "classes", "vae"),
        *pictures("Samples decoded from the prior: the same noise at each epoch.", samples),
    ]


def latent_blocks(comparison: Comparison) -> list[Any]:
    """Return latent optimisation beside the amortized model, and the effect of its initialisation."""
    entries = comparison.of("vae", "latent_opt")
    blocks: list[Any] = absent(comparison, ["vae", "latent_opt"], comparison.of("latent_opt"))
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
    return [*blocks, *pictures(caption, samples), *start_blocks(comparison)]


def start_blocks(comparison: Comparison) -> list[Any]:
    """Return the validation ELBO of each initialisation of latent optimisation, as figure and table."""
    starts, blocks = comparison.starts, []
    if not starts:
        return []
    names = [Ref(run.params["latent_init"], run.id, comparison.slots[run.id]) for run in starts]
    lines = [(name, comparison.curves.get((name.run, "val/elbo"))) for name in names]
    series = [Series(name.text, name.slot or 0, list(line), list(line.values())) for name, line in lines if line]
    if series:
        svg = figures.curves("initialisation", "Validation ELBO by initialisation", "nats", series, figures.WIDE)
        blocks.append(Figures("One run for each initialisation of the latent table.", names, [svg], wide=True))
    compared = {entry.run.id for entry in comparison.entries}
    base = next(run for run in starts if run.id in compared)
    rows: list[list[Cell]] = []
    for name, run, row in zip(names, starts, comparison.tables["initialisation"], strict=True):
        ends = [number(row["final_val_elbo"]), number(row["best_val_elbo"]), str(row["best_epoch"] or DASH)]
        test = measured(row["test_log_px"], row["test_log_px_se"])
        rows.append([Ref(name.text, slot=name.slot), short(run.id), unlike(run, base), *ends, test])
    head = ["Initialisation", "Run", "Else differs in", "Final val ELBO", "Best val ELBO", "At epoch", "Test log p(x)"]
    blocks.append(Table("Effect of the initialisation, nats.", head, rows, left=3))
    command = train_command(comparison, base.params["model"]) + " --latent-init "
    done = {run.params["latent_init"] for run in starts}
    lacking = [name for name in STARTS if name not in done]
    return blocks + [Missing(f"No finished run started from {name}.", command + name) for name in lacking]


def unlike(run: RunRecord, base: RunRecord) -> str:
    """Write the parameters in which a run differs from the compared one."""
    return ", ".join(f"{key} {public(value)}" for key, value in differences(run, base).items()) or "nothing"


def likelihood_blocks(comparison: Comparison) -> list[Any]:
    """Return single images, means by class, means by split, and class preservation."""
    entries = comparison.latents
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in SPLITS:
            row = comparison.summary(entry, split)
            if not isnan(row.get("class_preservation", nan)):
                kept = percent(row["class_preservation"], row["class_preservation_se"])
                rates = [percent(row["accuracy_original"]), percent(row["accuracy_reconstruction"])]
                rows.append([*start(entry), split, kept, *rates])
    head = ["Model", "Run", "Split", "Class kept", "Accuracy, originals", "Accuracy, reconstructions"]
    caption = "Class preservation: what the classifier makes of the reconstructions."
    confusion = "The classifier's class of each test original against that of its reconstruction."
    return [
        *absent(comparison, ["vae", "latent_opt", "ppca"], entries),
        *gallery(comparison),
        *digit_blocks(comparison),
        *mean_blocks(comparison),
        *([Table(caption, head, rows, left=3)] if rows else []),
        *heat(entries, confusion, "original", "reconstruction"),
    ]


def gallery(comparison: Comparison) -> list[Gallery]:
    """Return the example images with each run's reconstruction and log p(x)."""
    entries = [entry for entry in comparison.latents if entry.examples]
    if not entries:
        return []
    numbers = {(row["run"], row["index"]): row for row in comparison.tables["images"]}
    first, rows = entries[0].examples, []
    for place, (index, digit) in enumerate(zip(first["index"].tolist(), first["label"].tolist(), strict=True)):
        cells: list[tuple[Picture | None, str]] = []
        for entry in entries:
            row = numbers.get((entry.run.id, index), {})
            shown = entry.examples["reconstructions"][entry.examples["index"] == index]
            again = single(shown[0], f"{digit} reconstructed by {entry.label}") if len(shown) else None
            cells.append((again, measured(row.get("log_px"), row.get("std_err"))))
        rows.append((digit, index, single(first["originals"][place], f"original {digit}"), cells))
    caption = "(a) Single test images: reconstruction and log p(x) in nats ± noise of the estimate."
    return [Gallery(caption, [ref(entry) for entry in entries], rows)]


def single(image: np.ndarray, alt: str) -> Picture:
    """Return one image (H, W, C) as a picture."""
    return Picture(figures.png(image), alt, image.shape[1], image.shape[0])


def digit_blocks(comparison: Comparison) -> list[Any]:
    """Return mean log p(x) of each class on test images, as figure and table."""
    rows = {(row["run"], row["digit"]): row for row in comparison.tables["digits"] if row["split"] == "test"}
    digits = sorted({digit for _, digit in rows})
    entries = [entry for entry in comparison.entries if any(run == entry.run.id for run, _ in rows)]
    if not entries:
        return []
    series = []
    for entry in entries:
        have = [rows[entry.run.id, digit] for digit in digits if (entry.run.id, digit) in rows]
        x, y, error = ([row[name] for row in have] for name in ("digit", "log_px", "log_px_se"))
        series.append(Series(entry.label, entry.slot, x, y, error))
    empty: Row = {}
    body: list[list[Cell]] = []
    for digit in digits:
        line = [rows.get((entry.run.id, digit), empty) for entry in entries]
        body.append([str(digit), *(measured(row.get("log_px"), row.get("log_px_se")) for row in line)])
    names = [ref(entry) for entry in entries]
    svg = figures.by_class("digits", "(b) Mean test log p(x) of each class", "nats", series)
    return [
        Figures("Bars: one standard error over images.", names, [svg], wide=True),
        Table("(b) The same numbers.", ["Class", *names], body, left=1),
        *notes(comparison, "digits"),
    ]


def mean_blocks(comparison: Comparison) -> list[Any]:
    """Return means by split of every run and posterior, with the exact baseline and the floor."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in comparison.tables["summary"]:
        if "log_px" in row:
            groups.setdefault((row["model"], row["run"], row["posterior"]), {})[row["split"]] = row
    rows: list[list[Cell]] = []
    for (model, run, posterior), by in groups.items():
        slot = FLOOR_SLOT if posterior == "none" else comparison.slots[run]
        means = [measured(by[split]["log_px"], by[split]["log_px_se"]) if split in by else DASH for split in SPLITS]
        counts = ", ".join(dict.fromkeys(str(row["images"] or DASH) for row in by.values()))
        rows.append([Ref(model, slot=slot), short(run), posterior, *means, counts])
    head = ["Model", "Run", "Posterior", "Training", "Validation", "Test", "Images"]
    caption = "(c) Mean log p(x) ± standard error, nats; exact where the posterior is. The constant image is the floor."
    return [Table(caption, head, rows, left=3), *notes(comparison, "means")] if rows else []
