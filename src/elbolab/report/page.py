"""Lay comparisons out as one page and render it as HTML, Markdown and LaTeX: overview, datasets, list of runs."""

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from elbolab.evaluation.metrics import ACCURACY, LOG_PX, TEST
from elbolab.report import latex
from elbolab.report.blocks import Cell, Ref, Section, Table, ref, shown
from elbolab.report.collect import Comparison, Entry
from elbolab.report.plots import FLOOR_SLOT
from elbolab.report.sections import SECTIONS
from elbolab.report.sections.reproductions import Reproduced, reproduction_blocks
from elbolab.report.sections.summary import summary_blocks
from elbolab.report.tables import ACCURACY_SE, CONSTANT
from elbolab.support.number_formats import DAGGER, DASH, dagger, number, percent


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
    overview = [overview_table(comparisons)] if several else []
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
    names = ("index.html", "report.md")
    pages = {name: env.get_template(f"report/{name}.j2").render(context).strip() + "\n" for name in names}
    parts = [("", overview)] + [(each["name"], [b for s in each["sections"] for b in s.blocks]) for each in datasets]
    return pages | {"tables.tex": latex.write([*parts, ("", reproduced)])}


def dataset(comparison: Comparison, prefix: str = "") -> dict[str, Any]:
    """Return a dataset's part of the page; the prefix tells its anchors from those of other datasets."""
    return {
        "id": prefix.rstrip("-"),
        "name": comparison.tag("data.name"),
        "digest": comparison.tag("data.digest"),
        "cards": [card(comparison, entry) for entry in comparison.entries],
        "sections": sections(comparison, prefix),
    }


def sections(comparison: Comparison, prefix: str) -> list[Section]:
    """Return a dataset's sections in order, those that have anything; the summary has no number."""
    made = [Section(f"{prefix}summary", "Summary", summary_blocks(comparison))]
    for title, make in SECTIONS.items():
        if blocks := make(comparison):
            made.append(Section(prefix + title.lower().replace(" ", "-"), f"{len(made)} {title}", blocks))
    return made


def overview_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the table of models by datasets."""
    slots = {entry.label: entry.slot for comparison in comparisons for entry in comparison.latents}
    slots[CONSTANT] = FLOOR_SLOT
    rows: dict[str, list[Cell]] = {
        name: [Ref(name, slot=slot), *[DASH] * len(comparisons)] for name, slot in slots.items()
    }
    for place, comparison in enumerate(comparisons, start=1):
        for row in comparison.tables["summary"]:
            if row["split"] == TEST and LOG_PX.name in row:
                rows[row["model"]][place] = Ref(shown(LOG_PX, row), row["run"])
    caption = "Test log p(x) of an image ± standard error over images, nats, by model and dataset."
    head = ["Model", *(comparison.tag("data.name") for comparison in comparisons)]
    return Table("datasets", caption, head, list(rows.values()), left=1)


def card(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    """Return a run's headline number."""
    row = comparison.summary(entry, TEST)
    if entry.latent:
        metric, error = LOG_PX, row.get(LOG_PX.error_names[0], nan)
        value = dagger(number(row.get(LOG_PX.name), error=error), row.get("unreliable"))
        unit = f", {LOG_PX.unit}" + (", unreliable" if DAGGER in value else "")
    else:
        metric, value, error, unit = ACCURACY, percent(row.get(ACCURACY.name)), 100 * row.get(ACCURACY_SE, nan), ""
    spread = "" if isnan(error) or not error else f"± {number(error, 2 if entry.latent else 1, error)}"
    title = f"test {metric.label[:1].lower()}{metric.label[1:]}"
    return {"who": ref(entry), "value": value, "error": spread, "unit": title + unit}


def run_cards(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run's facts for the list at the end, with its address where the server has one."""
    cards = []
    for row in comparison.tables["runs"]:
        run, entry = comparison.runs[row["run"]]
        accuracy = row["evaluation.cnn_test_accuracy"]
        judge = f", test accuracy {percent(float(accuracy))}" if accuracy else ""
        cards.append(row | {"url": run.url, "slot": entry.slot, "judge": judge})
    return cards
