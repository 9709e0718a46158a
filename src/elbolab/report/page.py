"""Lay comparisons out as one page and render it as HTML, Markdown and LaTeX: summaries, overview, list of runs."""

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from elbolab.report import latex, plots
from elbolab.report.blocks import Cell, Figures, Ref, Section, Table, notes, ref, short, start
from elbolab.report.collect import Comparison, Entry, Row
from elbolab.report.plots import FLOOR_SLOT, Series
from elbolab.report.sections.ablations import ablation_blocks
from elbolab.report.sections.comparisons import pair_blocks, seed_blocks
from elbolab.report.sections.models import classifier_blocks, latent_blocks, likelihood_blocks, other_blocks, vae_blocks
from elbolab.report.sections.quality import quality_blocks
from elbolab.report.sections.reproductions import Reproduced, reproduction_blocks
from elbolab.report.sections.trust import trust_blocks
from elbolab.report.tables import FLOOR
from elbolab.support.number_formats import DAGGER, DASH, dagger, kept, mean_log_px, number, percent


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


def render(comparisons: Sequence[Comparison], reproductions: Sequence[Reproduced] = ()) -> dict[str, str]:
    """Return the report as `index.html` and `report.md`, and its tables as `tables.tex`."""
    env = environment()
    env.filters["md"] = lambda text: (
        " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    )
    several = len(comparisons) > 1
    datasets = [dataset(one, f"data{place}-" * several) for place, one in enumerate(comparisons, start=1)]
    runs = [card for comparison in comparisons for card in run_cards(comparison)]
    overview = overview_blocks(comparisons) if several else []
    reproduced = [block for place, each in enumerate(reproductions) for block in reproduction_blocks(each, place)]
    context = {
        "title": " and ".join(each["name"] for each in datasets),
        "observed": next((one for one in comparisons if one.latents), comparisons[0]).tag("observation_model"),
        "overview": overview,
        "datasets": datasets,
        "closing": [Section("reproductions", "Reproductions", reproduced)] if reproduced else [],
        "runs": runs,
        "address": {run: page for each in reproductions for run, page in each.pages.items()}
        | {run["run"]: run["url"] or f"#run-{run['run']}" for run in runs},
    }
    templates = {"index.html": "report/index.html.j2", "report.md": "report/report.md.j2"}
    pages = {name: env.get_template(file).render(context).strip() + "\n" for name, file in templates.items()}
    parts = [("", overview)] + [(each["name"], [b for s in each["sections"] for b in s.blocks]) for each in datasets]
    return pages | {"tables.tex": latex.write([*parts, ("", reproduced)])}


def dataset(comparison: Comparison, prefix: str = "") -> dict[str, Any]:
    """Return a dataset's part of the page; the prefix tells its anchors from those of other datasets."""
    entries = comparison.entries
    return {
        "id": prefix.rstrip("-"),
        "name": comparison.tag("data.name"),
        "digest": comparison.tag("data.digest"),
        "cards": [card(comparison, entry) for entry in entries] + [missing_card(name) for name in comparison.missing],
        "sections": sections(comparison, prefix),
    }


def sections(comparison: Comparison, prefix: str) -> list[Section]:
    """Return a dataset's sections in order, those that have anything."""
    found = [
        ("classification", "Supervised classification", classifier_blocks(comparison)),
        ("vae", "Amortized model (VAE)", vae_blocks(comparison)),
        ("latent-optimisation", "Latent optimisation", latent_blocks(comparison)),
        ("others", "Other latent-variable models", other_blocks(comparison)),
        ("likelihood", "Likelihood", likelihood_blocks(comparison)),
        ("trust", "How far to trust it", trust_blocks(comparison)),
        ("quality", "Latent space and samples", quality_blocks(comparison)),
        ("ablations", "Ablations", ablation_blocks(comparison)),
    ]
    numbered = [
        Section(f"{prefix}{name}", f"{place} {title}", blocks)
        for place, (name, title, blocks) in enumerate([part for part in found if part[-1]], start=1)
    ]
    return [Section(f"{prefix}summary", "Summary", summary_blocks(comparison)), *numbered]


def overview_blocks(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return the table of models by datasets."""
    shown = {entry.label: entry.slot for comparison in comparisons for entry in comparison.latents}
    rows: dict[str, list[Cell]] = {
        name: [Ref(name, slot=slot), *[DASH] * len(comparisons)] for name, slot in (shown | {FLOOR: FLOOR_SLOT}).items()
    }
    for place, comparison in enumerate(comparisons, start=1):
        for row in comparison.tables["summary"]:
            if row["split"] == "test" and "log_px" in row:
                rows[row["model"]][place] = Ref(mean_log_px(row), row["run"])
    caption = "Test log p(x) of an image ± standard error over images, nats, by model and dataset."
    head = ["Model", *(comparison.tag("data.name") for comparison in comparisons)]
    return [Table("datasets", caption, head, list(rows.values()), left=1)]


def card(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    """Return a run's headline number."""
    row = comparison.summary(entry, "test")
    if entry.latent:
        value, error = dagger(number(row.get("log_px")), row.get("unreliable")), row.get("log_px_se", nan)
        unit = "test log p(x), nats" + (", unreliable" if DAGGER in value else "")
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
        likelihoods = [mean_log_px(row) for row in (test, train)]
        bound = [number(test.get("posterior_elbo")), number(test.get("ess"), 0)]
        accuracy = percent(test.get("accuracy"), test.get("accuracy_se"))
        rows.append([*start(entry), *likelihoods, *bound, kept(test), accuracy])
    floor = {row["split"]: row for row in comparison.tables["summary"] if row.get("posterior") == "none"}
    if floor:
        values = [mean_log_px(floor[split]) for split in ("test", "train")]
        rows.append([Ref(FLOOR, slot=FLOOR_SLOT), short(floor["test"]["run"]), *values, *[DASH] * 4])
    for model in comparison.missing:
        rows.append([model, "missing", *[DASH] * 6])
    head = ["Model", "Run", "Test log p(x)", "Training log p(x)", "Test ELBO", "Median ESS", "Class kept", "Accuracy"]
    caption = (
        "Mean ± standard error. Class kept: how often the classifier gives the reconstruction the same class, with the "
        "95% bootstrap interval over images."
    )
    return [
        Table("summary", caption, head, rows),
        *seed_blocks(comparison),
        *ranking(comparison, floor),
        *pair_blocks(comparison),
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
    svg = plots.ranking(f"ranking-{entries[0].run.id[:8]}", "Mean log p(x) of an image", "nats", series)
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
    return Table(
        "protocol", caption, ["Model", "Run", "Posterior", "Samples an image", "Images a split", "Seed"], rows, left=3
    )


def run_cards(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run's facts for the list at the end, with its address where the server has one."""
    cards = []
    for row in comparison.tables["runs"]:
        run, entry = comparison.runs[row["run"]]
        accuracy = row["evaluation.cnn_test_accuracy"]
        judge = f", test accuracy {percent(float(accuracy))}" if accuracy else ""
        cards.append(row | {"url": run.url, "slot": entry.slot, "judge": judge})
    return cards
