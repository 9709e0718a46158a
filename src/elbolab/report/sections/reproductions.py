"""What came of a reproduction, beside what its source reports: numbers, Markdown and figure."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from elbolab.report import plots
from elbolab.report.blocks import Block, Cell, Figures, Ref, Table, short
from elbolab.report.chart import Chart
from elbolab.support.number_formats import DAGGER, DASH, MINUS, UNRELIABLE, dagger, decimals
from elbolab.support.statistics import mean_and_half_width
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import REPRODUCTION

FOUND = "reproduction.json"
# Of a study's own metrics nothing says how many are of use.
MOST_DECIMALS = 4
OVER_SEEDS, OVER_IMAGES = "95% interval over seeds", "one standard error over images"
# A training in a row of the table as Markdown, and its epochs.
ROW = re.compile(r"^\| ([^|]+) \| (\d+) \|", re.MULTILINE)


@dataclass(frozen=True)
class Reproduced:
    """What a reproduction found, its figure if it has one, and where its runs have pages, these by id."""

    found: dict[str, Any]
    chart: Chart | None
    pages: dict[str, str]


def newest_reproductions() -> list[Reproduced]:
    """The newest finished reproduction of each name, by name, without those whose files are lost."""
    newest = mlflow_reader.newest_of_each("study", {REPRODUCTION: "true"}, "study")
    there = []
    for run in sorted(newest, key=lambda run: run.params["study"]):
        try:
            if FOUND not in artifacts.list_artifacts(run.id):
                raise artifacts.LostError(f"{FOUND} of run {run.id} ({run.params['study']}) is not there any more")
            there.append(artifacts.read(run.id, FOUND, lambda file, run=run: _reproduced(file, run.experiment)))
        except artifacts.LostError as error:
            print(f"elbolab: left out of the report: {error}", file=sys.stderr, flush=True)
    return there


def _reproduced(file: Path, experiment: str) -> Reproduced:
    found = json.loads(file.read_bytes())
    chart = Chart.parse(found["chart"]) if found.get("chart") else None
    pages = {run: mlflow_reader.page_of(experiment, run) for row in found["rows"] for run in row["runs"]}
    return Reproduced(found, chart, {run: page for run, page in pages.items() if page})


def reproduction_blocks(reproduced: Reproduced, place: int) -> list[Block]:
    """Return the table of a reproduction beside the numbers of its source, and its figure; ``place`` is its own."""
    found = reproduced.found
    shown = columns(found)
    head = ["Training", "Epochs", "Runs", *(metric if kind == "measured" else "Reported" for metric, kind in shown)]
    rows: list[list[Cell]] = []
    for row in found["rows"]:
        cells = [_shown(row, *column) for column in shown]
        rows.append([row["training"], str(row["epochs"]), tuple(map(short, row["runs"])), *cells])
    caption = f"{found['question']} {found['command']}: {facts(found)}"
    blocks: list[Block] = [Table(f"reproduction {found['name']}", caption, head, rows, left=3)]
    if (chart := reproduced.chart) is not None:
        names = [Ref(name, slot=slot) for name, slot in plots.slots(chart).items()]
        blocks.append(Figures(chart.caption, names, [plots.chart(f"reproduction{place}", chart)], wide=True))
    return blocks


def _shown(row: dict[str, Any], metric: str, kind: str) -> Cell:
    text = cell(row, metric, kind).replace("-", MINUS)
    # What somebody reported is of none of these runs.
    return Ref(text) if kind == "reference" else text


def summarise(table: pd.DataFrame, metrics: tuple[str, ...], references: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Each training's metrics: mean over seeds ± half its 95% interval, or of one seed ± its error over images."""
    rows = []
    for training, own in table.groupby("training", sort=False):
        figures: dict[str, dict[str, Any]] = {}
        for metric in [metric for metric in metrics if (own.metric == metric).any()]:
            values = own[own.metric == metric]
            means, (error, *_) = values.value.tolist(), values.std_err.tolist()
            mean, error = mean_and_half_width(means) if len(means) > 1 else (means[0], error)
            unreliable = bool(values.unreliable.any())
            figures[metric] = {"mean": mean, "error": error, "unreliable": unreliable, "reference": None}
        for metric, value in references.get(str(training), {}).items():
            figures.setdefault(metric, {"mean": None, "error": None})["reference"] = value
        runs = own.run.drop_duplicates().tolist()
        rows.append({"training": training, "epochs": int(own.epochs.iloc[0]), "runs": runs, "figures": figures})
    seeds = sorted(table.seed.unique().tolist())
    error = OVER_SEEDS if len(seeds) > 1 else OVER_IMAGES
    return {"metrics": list(metrics), "seeds": seeds, "error": error, "rows": rows}


def columns(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The columns of the table: a metric and what is shown of it, ``measured`` or ``reference``, where there is one."""
    figures = [figure for row in found["rows"] for figure in row["figures"].items()]
    return [
        (metric, kind)
        for metric in found["metrics"]
        for kind, key in (("measured", "mean"), ("reference", "reference"))
        if any(name == metric and figure[key] is not None for name, figure in figures)
    ]


def cell(row: dict[str, Any], metric: str, kind: str) -> str:
    """What the table says of a training's metric; a dash where it was not measured or not reported."""
    figure = row["figures"].get(metric, {})
    if kind == "reference":
        return DASH if figure.get("reference") is None else f"{figure['reference']:g}"
    if figure.get("mean") is None:
        return DASH
    # An error that was not estimated is NaN, or null once it has been JSON.
    error = None if figure["error"] != figure["error"] else figure["error"]
    places = decimals(error, MOST_DECIMALS if error else 2)
    spread = "" if error is None else f" ± {error:.{places}f}" if error else " ± 0"
    # A count is written as one.
    mean = f"{figure['mean']:.{0 if not spread and figure['mean'].is_integer() else places}f}"
    return dagger(f"{mean}{spread}", figure.get("unreliable"))


def facts(found: dict[str, Any]) -> str:
    """How the numbers came about, and whose are reported, one line."""
    seeds = ", ".join(map(str, found["seeds"]))
    evaluation = ", ".join(f"{key} {value}" for key, value in found["evaluation"].items())
    source = f" Reported: {found['source']}." if found["source"] else ""
    return (
        f"seed{'s' if len(found['seeds']) > 1 else ''} {seeds}, commit {', '.join(found['commits'])}, "
        f"{found['seconds'] / 60:.0f} minutes on {', '.join(found['devices'])}"
        f"{f'; evaluated with {evaluation}' if evaluation else ''}; ± is {found['error']}.{source}"
    )


def markdown(found: dict[str, Any], chart: Chart | None) -> str:
    """The table as Markdown, with the command and what made it, and the figure, NAME.png beside the page."""
    shown = columns(found)
    head = ["training", "epochs", *(f"`{metric}`" if kind == "measured" else "reported" for metric, kind in shown)]
    body = [[row["training"], str(row["epochs"]), *(cell(row, *column) for column in shown)] for row in found["rows"]]
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    picture = ["", f"![{chart.alt}]({found['name']}.png)"] if chart else []
    note = ["", UNRELIABLE] if any(DAGGER in line for line in lines + picture) else []
    return "\n".join([f"`{found['command']}`: {facts(found)}", "", *lines, *note, *picture])


def insert(page: Path, name: str, text: str) -> bool:
    """Put ``text`` between the page's comments `study NAME` and `end NAME`; whether it did.

    It does not where the page has none, or where the table between them has another training, or more epochs of one: a
    part of a study does not take the place of the whole.
    """
    before = page.read_text(encoding="utf-8")
    place = re.compile(rf"(<!-- study {re.escape(name)} -->\n)(.*?)(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if (there := place.search(before)) is None:
        return False
    epochs = {training: int(count) for training, count in ROW.findall(text)}
    if any(epochs.get(training, 0) < int(count) for training, count in ROW.findall(there[2])):
        return False
    page.write_text(f"{before[: there.start()]}{there[1]}{text}\n{there[3]}{before[there.end() :]}", encoding="utf-8")
    return True
