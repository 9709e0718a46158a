"""Lay comparisons out as one page and render it as HTML, Markdown and LaTeX: overview, datasets, list of runs."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from elbolab.evaluation.metrics import LOG_PX, TEST
from elbolab.evaluation.metrics import UNRELIABLE as UNRELIABLE_SHARE
from elbolab.report import latex
from elbolab.report.blocks import Block, Cell, Ref, Section, Table, marked, shown
from elbolab.report.collect import SPLITS, Comparison
from elbolab.report.commands import evaluate_surer
from elbolab.report.plots import FLOOR_SLOT
from elbolab.report.sections import SECTIONS
from elbolab.report.sections.reproductions import Reproduced, reproduction_blocks
from elbolab.report.sections.summary import method, summary_blocks
from elbolab.report.tables import CONSTANT
from elbolab.support.number_formats import DASH, UNRELIABLE, percent
from elbolab.support.statistics import is_unreliable

PAGES = ("index.html", "report.md", "tables.tex")


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
    """Return the report as HTML and Markdown and its tables as LaTeX, under the names of ``PAGES``."""
    env = environment()
    env.filters["md"] = lambda text: (
        " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    )
    several = len(comparisons) > 1
    datasets = [dataset(one, f"data{place}-" * several) for place, one in enumerate(comparisons, start=1)]
    runs = [card for comparison in comparisons for card in run_cards(comparison)]
    overview = [overview_table(comparisons)] if several else []
    reproduced = [block for place, each in enumerate(reproductions) for block in reproduction_blocks(each, place)]
    own = [(each["name"], [block for section in each["sections"] for block in section.blocks]) for each in datasets]
    parts: list[tuple[str, Sequence[Block]]] = [("", overview), *own, ("", reproduced)]
    context = {
        "title": " and ".join(each["name"] for each in datasets),
        "observed": next((one for one in comparisons if one.latents), comparisons[0]).tag("observation_model"),
        "overview": overview,
        "datasets": datasets,
        "closing": [Section("reproductions", "Reproductions", reproduced)] if reproduced else [],
        "footnote": footnote(comparisons, [block for _, blocks in parts for block in blocks]),
        "runs": runs,
        "address": {run: page for each in reproductions for run, page in each.pages.items()}
        | {run["run"]: run["url"] or f"#run-{run['run']}" for run in runs},
    }
    *names, tables = PAGES
    pages = {name: env.get_template(f"report/{name}.j2").render(context).strip() + "\n" for name in names}
    return pages | {tables: latex.write(parts)}


def footnote(comparisons: Sequence[Comparison], blocks: Sequence[Block]) -> list[str]:
    """Return what the dagger means, where the page has one, and a command for each run that it concerns."""
    if not any(block.doubtful for block in blocks):
        return []
    doubtful = []
    for comparison in comparisons:
        shown = {run.id for entry in comparison.entries for run in entry.runs}
        for run, entry in comparison.runs.values():
            shares = [run.metrics.get(UNRELIABLE_SHARE.at(split), 0) for split in SPLITS]
            # Of an ablation no single image is on the page.
            if entry.latent and any(share > 0 if run.id in shown else is_unreliable(share) for share in shares):
                doubtful.append(run)
    return [UNRELIABLE, *map(evaluate_surer, doubtful)]


def dataset(comparison: Comparison, prefix: str = "") -> dict[str, Any]:
    """Return a dataset's part of the page; the prefix tells its anchors from those of other datasets."""
    return {
        "id": prefix.rstrip("-"),
        "name": comparison.tag("data.name"),
        "digest": comparison.tag("data.digest"),
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
        named = {entry.label: entry for entry in comparison.latents}
        for row in comparison.tables["summary"]:
            if row["split"] == TEST and LOG_PX.name in row:
                text, entry = shown(LOG_PX, row), named.get(row["model"])
                rows[row["model"]][place] = Ref(marked(text, entry) if entry else text, row["run"])
    caption = "Test log p(x) of an image ± standard error over images, nats, by model and dataset."
    head = ["Model", *(comparison.tag("data.name") for comparison in comparisons)]
    return Table("datasets", caption, head, list(rows.values()), left=1)


def run_cards(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run's facts for the list at the end, with its address where the server has one."""
    cards = []
    for row in comparison.tables["runs"]:
        run, entry = comparison.runs[row["run"]]
        accuracy = row["evaluation.cnn_test_accuracy"]
        judge = f", test accuracy {percent(float(accuracy))}" if accuracy else ""
        cards.append(row | {"url": run.url, "slot": entry.slot, "judge": judge, "estimate": method(entry)})
    return cards
