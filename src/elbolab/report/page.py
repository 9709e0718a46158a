"""Lay a comparison out as sections of tables, figures, pictures and sentences, and render them as HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from elbolab.compare import FLOOR, SPLITS, differences, public
from elbolab.report import (
    DASH,
    Cell,
    Figures,
    Gallery,
    Heat,
    Missing,
    Notes,
    Picture,
    Pictures,
    Ref,
    Section,
    Table,
    figures,
    measured,
    number,
    percent,
)  # fmt: skip
from elbolab.report.figures import Series

if TYPE_CHECKING:
    from elbolab.compare import Comparison, Entry, Row
    from elbolab.tracker import RunRecord

DATA_FLAGS = ("dataset", "train_size", "val_size", "test_size", "split_seed")
OBSERVATION_FLAGS = ("likelihood", "sigma")
STARTS = ("zeros", "normal", "pca")
FLOOR_SLOT = 4
LOSSES = (("loss", "Total loss", "nats"), ("mse", "Mean squared error", "per pixel"), ("kl", "KL divergence", "nats"))
CLASSIFIER = (("loss", "Cross entropy", "nats"), ("accuracy", "Accuracy", "rate"))


def render(comparison: Comparison) -> dict[str, str]:
    """Return the report as `index.html` and `report.md`."""
    env = Environment(
        loader=PackageLoader("elbolab", "report"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["md"] = lambda text: " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
    entries = comparison.entries
    first = next((entry.run for entry in entries if entry.latent), entries[0].run)
    context = {
        "tags": {key: public(first.tags.get(key, "")) for key in ("data.name", "data.digest", "observation_model")},
        "cards": [card(comparison, entry) for entry in entries] + [missing_card(name) for name in comparison.missing],
        "sections": sections(comparison),
        "runs": run_cards(comparison),
        "known": slots(comparison),
    }
    templates = {"index.html": "index.html.j2", "report.md": "report.md.j2"}
    return {name: env.get_template(template).render(context) for name, template in templates.items()}


def sections(comparison: Comparison) -> list[Section]:
    """Return the page's sections in order."""
    return [
        Section("summary", "Summary", summary_blocks(comparison)),
        Section("classification", "1 Supervised classification", classifier_blocks(comparison)),
        Section("vae", "2 Amortized model (VAE)", vae_blocks(comparison)),
        Section("latent-optimisation", "3 Latent optimisation", latent_blocks(comparison)),
        Section("likelihood", "4 Likelihood", likelihood_blocks(comparison)),
    ]


def slots(comparison: Comparison) -> dict[str, int]:
    """Return the colour slot of every run on the page, by id."""
    return {run.id: 5 + place for place, run in enumerate(comparison.starts)} | {
        entry.run.id: entry.slot for entry in comparison.entries
    }


def of(comparison: Comparison, *models: str) -> list[Entry]:
    """Return the entries of some models, in the report's order."""
    return [entry for entry in comparison.entries if entry.model in models]


def latents(comparison: Comparison) -> list[Entry]:
    """Return the entries that are densities of images."""
    return [entry for entry in comparison.entries if entry.latent]


def ref(entry: Entry) -> Ref:
    """Name an entry in its colour, with its run."""
    return Ref(entry.label, entry.run.id, entry.slot)


def start(entry: Entry) -> list[Cell]:
    """Return a row's first two cells: the entry in its colour, and its run."""
    return [Ref(entry.label, slot=entry.slot), short(entry.run.id)]


def short(run: str) -> Ref:
    """Point at a run by the first characters of its id."""
    return Ref(run[:8], run)


def summary_row(comparison: Comparison, entry: Entry, split: str) -> Row:
    """Return a run's row of the summary for its declared posterior, empty where there is none."""
    rows = (row for row in comparison.tables["summary"] if (row["run"], row["split"]) == (entry.run.id, split))
    return next((row for row in rows if row.get("posterior") not in ("table", "none")), {})


def notes(comparison: Comparison, topic: str, *models: str) -> list[Notes]:
    """Return the sentences of a topic, of some models where named."""
    ids = {entry.run.id for entry in of(comparison, *models)}
    found = [item for item in comparison.findings[topic] if not models or item.runs[0] in ids]
    return [Notes(found)] if found else []


def train_command(comparison: Comparison, model: str) -> str:
    """Return the command that trains a model on the report's data, with its observation model."""
    latent = latents(comparison)
    params = (latent or comparison.entries)[0].run.params
    names = DATA_FLAGS + (OBSERVATION_FLAGS if latent and model != "cnn" else ())
    given = [(name, public(params[name])) for name in names if params.get(name) not in (None, "None")]
    return f"elbolab {model}" + "".join(f" --{name.replace('_', '-')} {value}" for name, value in given)


def absent(comparison: Comparison, models: Sequence[str], entries: Sequence[Entry]) -> list[Missing]:
    """Return a notice for each of the models without a run, and for each of the entries without an evaluation."""
    out = [
        Missing(f"No finished {model} run on this data.", train_command(comparison, model))
        for model in models
        if model in comparison.missing
    ]
    for entry in entries:
        lack = "was evaluated without a classifier" if entry.evaluated else "has not been evaluated"
        if not entry.classes:
            out.append(Missing(f"{entry.label} {lack}.", f"elbolab evaluate {entry.run.id}"))
    return out


def card(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    """Return a run's headline number."""
    row = summary_row(comparison, entry, "test")
    if entry.latent:
        value, error, unit = number(row.get("log_px")), row.get("log_px_se", nan), "test log p(x), nats"
        return {"who": ref(entry), "value": value, "error": "" if isnan(error) else f"± {error:.2f}", "unit": unit}
    error = row.get("accuracy_se", nan)
    spread = "" if isnan(error) else f"± {100 * error:.1f}"
    return {"who": ref(entry), "value": percent(row.get("accuracy")), "error": spread, "unit": "test accuracy"}


def missing_card(model: str) -> dict[str, Any]:
    """Return the headline of a model that has no run."""
    return {"who": Ref(model), "value": "missing", "error": "", "unit": "no finished run"}


def summary_blocks(comparison: Comparison) -> list[Any]:
    """Return the headline table, figure, sentences and the protocol."""
    rows: list[list[Cell]] = []
    for entry in comparison.entries:
        test, train = (summary_row(comparison, entry, split) for split in ("test", "train"))
        likelihoods = [measured(row.get("log_px"), row.get("log_px_se")) for row in (test, train)]
        bound = [number(test.get("posterior_elbo")), number(test.get("ess"), 0)]
        kept = percent(test.get("class_preservation"), test.get("class_preservation_se"))
        accuracy = percent(test.get("accuracy"), test.get("accuracy_se"))
        rows.append([*start(entry), *likelihoods, *bound, kept, accuracy])
    floor = {row["split"]: row for row in comparison.tables["summary"] if row.get("posterior") == "none"}
    if floor:
        values = [measured(floor[split]["log_px"], floor[split]["log_px_se"]) for split in ("test", "train")]
        rows.append([Ref(FLOOR, slot=FLOOR_SLOT), short(floor["test"]["run"]), *values, *[DASH] * 4])
    for model in comparison.missing:
        rows.append([model, "missing", *[DASH] * 6])
    head = ["Model", "Run", "Test log p(x)", "Training log p(x)", "Test ELBO", "Median ESS", "Class kept", "Accuracy"]
    caption = "Mean ± standard error. Class kept: how often the classifier gives the reconstruction the same class."
    return [
        Table(caption, head, rows), *ranking(comparison, floor), *notes(comparison, "summary"), protocol(comparison),
    ]  # fmt: skip


def ranking(comparison: Comparison, floor: dict[str, Row]) -> list[Figures]:
    """Return the figure of all mean log p(x), test beside training."""
    entries = [entry for entry in latents(comparison) if entry.evaluated]
    lines = [
        (entry.label, entry.slot, [summary_row(comparison, entry, split) for split in ("test", "train")])
        for entry in entries
    ]
    lines += [(FLOOR, FLOOR_SLOT, [floor[split] for split in ("test", "train")])] if floor else []
    series = [
        Series(name, slot, [], [row["log_px"] for row in rows if row], [row["log_px_se"] for row in rows if row])
        for name, slot, rows in lines
    ]
    if not series:
        return []
    svg = figures.ranking("ranking", "Mean log p(x) of an image", "nats", series)
    caption = "Filled: test images; hollow: training images. Bars: one standard error."
    return [Figures(caption, [ref(entry) for entry in entries], [svg], wide=True)]


def protocol(comparison: Comparison) -> Table:
    """Return how each density was evaluated, from its run's tags."""
    names = ("posterior", "samples", "images", "seed")
    rows = [
        [*start(entry), *(entry.run.tags.get(f"evaluation.{name}", DASH) for name in names)]
        for entry in latents(comparison)
    ]
    caption = (
        "How to read: log p(x) is estimated by importance sampling from the posterior named here, or exact where it "
        "says so, on as many images of each split; ± is one standard error of the mean over images, with the noise of "
        "the estimate in it. Every number is of the run whose id stands beside it."
    )
    return Table(caption, ["Model", "Run", "Posterior", "Samples an image", "Images a split", "Seed"], rows, left=3)


def classifier_blocks(comparison: Comparison) -> list[Any]:
    """Return the classifier's curves, accuracies and confusion."""
    entries = [entry for entry in comparison.entries if not entry.latent]
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in SPLITS:
            if row := summary_row(comparison, entry, split):
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


def heat(entries: Sequence[Entry], caption: str, down: str, across: str) -> list[Heat]:
    """Return the test confusions of some runs, nothing where none was counted."""
    tables = []
    for entry in entries:
        if found := entry.classes.get("splits", {}).get("test"):
            lines = [[(count, count / max(sum(line), 1)) for count in line] for line in found["confusion"]]
            tables.append((ref(entry), found["n"], lines))
    return [Heat(caption, tables, down, across)] if tables else []


def curve_blocks(
    comparison: Comparison, entries: Sequence[Entry], keys: Iterable[tuple[str, str, str]]
) -> list[Figures]:
    """Return training and validation values by epoch, one figure a key."""
    svgs = []
    for key, title, unit in keys:
        series = []
        for entry in entries:
            for split in ("val", "train"):
                if values := comparison.curves.get((entry.run.id, f"{split}/{key}")):
                    name, dashed = f"{entry.label} {SPLITS[split]}", split == "train"
                    series.append(Series(name, entry.slot, list(values), list(values.values()), dashed=dashed))
        if series:
            name = "-".join([key, *(entry.run.id[:8] for entry in entries)])
            svgs.append(figures.curves(name, title, unit, series))
    return [Figures("Solid: validation; dashed: training.", [ref(entry) for entry in entries], svgs)] if svgs else []


def vae_blocks(comparison: Comparison) -> list[Any]:
    """Return the amortized model's curves, reconstructions, class changes and samples."""
    entries = of(comparison, "vae")
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
    entries = of(comparison, "vae", "latent_opt")
    blocks: list[Any] = absent(comparison, ["vae", "latent_opt"], of(comparison, "latent_opt"))
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


def epochs(entries: Sequence[Entry], *keys: str) -> list[int]:
    """Return the epochs at which any of the runs logged any of the keys."""
    return sorted({epoch for entry in entries for key in keys for epoch in entry.pictures[key]})


def picture(entry: Entry, key: str, epoch: int, caption: str) -> Picture | None:
    """Return a logged grid of digits, None where that epoch has none."""
    if (path := entry.pictures[key].get(epoch)) is None:
        return None
    what = "digits decoded from the prior" if key == "samples" else "ten originals above their reconstructions"
    return Picture(*figures.png_file(path, f"{caption}: {what}"), caption, entry.run.id)


def pictures(caption: str, items: Iterable[Picture | None]) -> list[Pictures]:
    """Return a block of the pictures that exist."""
    have = [item for item in items if item]
    return [Pictures(caption, have)] if have else []


def ten_table(entries: Sequence[Entry]) -> list[Table]:
    """Return the classes that the classifier gives the fixed digits and their reconstructions."""
    rows: list[list[Cell]] = []
    labels: list[str] = []
    for entry in entries:
        for split, ten in entry.classes.get("ten", {}).items():
            labels = [str(one["label"]) for one in ten]
            pairs = [(one["original"], one["reconstruction"]) for one in ten]
            cells = [str(a) if a == b else Ref(f"{a} → {b}", strong=True) for a, b in pairs]
            rows.append([*start(entry), split, *cells, f"{sum(a != b for a, b in pairs)} of {len(ten)}"])
    caption = "The class given to each fixed digit and, where it differs (→), to its reconstruction."
    return [Table(caption, ["Model", "Run", "Split", *labels, "Changed"], rows, left=3)] if rows else []


def start_blocks(comparison: Comparison) -> list[Any]:
    """Return the validation ELBO of each initialisation of latent optimisation, as figure and table."""
    starts, blocks = comparison.starts, []
    if not starts:
        return []
    names = [Ref(run.params["latent_init"], run.id, slots(comparison)[run.id]) for run in starts]
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
    entries = latents(comparison)
    rows: list[list[Cell]] = []
    for entry in entries:
        for split in SPLITS:
            row = summary_row(comparison, entry, split)
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
    entries = [entry for entry in latents(comparison) if entry.examples]
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
        slot = FLOOR_SLOT if posterior == "none" else slots(comparison)[run]
        means = [measured(by[split]["log_px"], by[split]["log_px_se"]) if split in by else DASH for split in SPLITS]
        counts = ", ".join(dict.fromkeys(str(row["images"] or DASH) for row in by.values()))
        rows.append([Ref(model, slot=slot), short(run), posterior, *means, counts])
    head = ["Model", "Run", "Posterior", "Training", "Validation", "Test", "Images"]
    caption = "(c) Mean log p(x) ± standard error, nats; exact where the posterior is. The constant image is the floor."
    return [Table(caption, head, rows, left=3), *notes(comparison, "means")] if rows else []


def run_cards(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run's facts for the list at the end, with its address where the server has one."""
    runs = {run.id: run for run in [*(entry.run for entry in comparison.entries), *comparison.starts]}
    colours = slots(comparison)
    return [row | {"url": runs[row["run"]].url, "slot": colours[row["run"]]} for row in comparison.tables["runs"]]
