"""Lay a comparison out as a page and render it as HTML and Markdown: its summary, its list of runs."""

from math import isnan, nan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from elbolab.report import figures
from elbolab.report.blocks import (
    DASH,
    FLOOR_SLOT,
    Cell,
    Figures,
    Ref,
    Section,
    Table,
    measured,
    notes,
    number,
    percent,
    ref,
    short,
    start,
)
from elbolab.report.entries import Comparison, Entry, Row, public
from elbolab.report.figures import Series
from elbolab.report.sections import classifier_blocks, latent_blocks, likelihood_blocks, vae_blocks
from elbolab.report.tables import FLOOR


def environment() -> Environment:
    """Return the templates of the whole package, named by their paths in it; what goes into HTML is escaped."""
    return Environment(
        loader=PackageLoader("elbolab", ""),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(comparison: Comparison) -> dict[str, str]:
    """Return the report as `index.html` and `report.md`."""
    env = environment()
    env.filters["md"] = lambda text: " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
    entries = comparison.entries
    first = next((entry.run for entry in entries if entry.latent), entries[0].run)
    context = {
        "tags": {key: public(first.tags.get(key, "")) for key in ("data.name", "data.digest", "observation_model")},
        "cards": [card(comparison, entry) for entry in entries] + [missing_card(name) for name in comparison.missing],
        "sections": sections(comparison),
        "runs": run_cards(comparison),
        "known": comparison.slots,
    }
    templates = {"index.html": "report/index.html.j2", "report.md": "report/report.md.j2"}
    return {name: env.get_template(file).render(context).strip() + "\n" for name, file in templates.items()}


def sections(comparison: Comparison) -> list[Section]:
    """Return the page's sections in order."""
    return [
        Section("summary", "Summary", summary_blocks(comparison)),
        Section("classification", "1 Supervised classification", classifier_blocks(comparison)),
        Section("vae", "2 Amortized model (VAE)", vae_blocks(comparison)),
        Section("latent-optimisation", "3 Latent optimisation", latent_blocks(comparison)),
        Section("likelihood", "4 Likelihood", likelihood_blocks(comparison)),
    ]


def card(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    """Return a run's headline number."""
    row = comparison.summary(entry, "test")
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
        test, train = (comparison.summary(entry, split) for split in ("test", "train"))
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
        Table(caption, head, rows),
        *ranking(comparison, floor),
        *notes(comparison, "summary"),
        protocol(comparison),
    ]


def ranking(comparison: Comparison, floor: dict[str, Row]) -> list[Figures]:
    """Return the figure of all mean log p(x), test beside training."""
    entries = [entry for entry in comparison.latents if entry.evaluated]
    lines = [
        (entry.label, entry.slot, [comparison.summary(entry, split) for split in ("test", "train")])
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
    return Table(caption, ["Model", "Run", "Posterior", "Samples an image", "Images a split", "Seed"], rows, left=3)


def run_cards(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run's facts for the list at the end, with its address where the server has one."""
    runs = {run.id: run for run in [*(entry.run for entry in comparison.entries), *comparison.starts]}
    colours = comparison.slots
    return [row | {"url": runs[row["run"]].url, "slot": colours[row["run"]]} for row in comparison.tables["runs"]]
