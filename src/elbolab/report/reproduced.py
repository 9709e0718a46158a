"""What came of a reproduction, beside what its source reports: numbers, Markdown and figure."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elbolab import records
from elbolab.intervals import mean_and_half_width
from elbolab.report.blocks import Cell, Picture, Pictures, Table, short
from elbolab.report.figures import png_file
from elbolab.report.numbers import DASH, MINUS

REPRODUCTION, FOUND = "elbolab.reproduction", "reproduction.json"
OVER_SEEDS, OVER_IMAGES = "95% interval over seeds", "one standard error over images"

Reproduced = tuple[dict[str, Any], Path | None]
"""What a reproduction found, and its figure if it has one."""


def newest_reproductions() -> list[Reproduced]:
    """The newest finished reproduction of each name, by name."""
    newest = {run.params["study"]: run for run in records.newest_of_each("study", {REPRODUCTION: "true"}, "study")}
    found = []
    for name, run in sorted(newest.items()):
        drawn = f"figures/{name}.png"
        figure = records.fetch(run.id, drawn) if drawn in records.list_artifacts(run.id, "figures") else None
        found.append((records.read(run.id, FOUND, lambda file: json.loads(file.read_bytes())), figure))
    return found


def reproduction_blocks(found: dict[str, Any], figure: Path | None) -> list[Any]:
    """Return the table of a reproduction beside the numbers of its source, and its figure."""
    source = f" Reported: {found['source']}." if found["source"] else ""
    shown = columns(found)
    head = ["Training", "Epochs", "Runs", *(metric if kind == "measured" else "Reported" for metric, kind in shown)]
    rows: list[list[Cell]] = [
        [
            row["training"],
            str(row["epochs"]),
            tuple(short(run) for run in row["runs"]),
            *(cell(row, *column).replace("-", MINUS) for column in shown),
        ]
        for row in found["rows"]
    ]
    caption = f"{found['question']} {found['command']}: {facts(found)}.{source}"
    blocks: list[Any] = [Table(f"reproduction {found['name']}", caption, head, rows, left=3)]
    if figure is not None:
        src, width, height = png_file(figure)
        blocks.append(Pictures("", [Picture(src, found["question"], width // 2, height // 2)]))
    return blocks


def summarise(table: pd.DataFrame, metrics: tuple[str, ...], references: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Each training's metrics: mean over seeds ± half its 95% interval, or of one seed ± its error over images."""
    rows = []
    for training, own in table.groupby("training", sort=False):
        row: dict[str, Any] = {
            "training": training,
            "epochs": int(own.epochs.iloc[0]),
            "runs": own.run.drop_duplicates().tolist(),
            "figures": {},
        }
        for metric in metrics:
            values = own[own.metric == metric]
            if len(values):
                many = len(values) > 1
                mean, error = (
                    mean_and_half_width(values.value.tolist()) if many else (values.value.item(), values.std_err.item())
                )
                row["figures"][metric] = {"mean": mean, "error": error, "reference": None}
        for metric, value in references.get(str(training), {}).items():
            row["figures"].setdefault(metric, {"mean": None, "error": None})["reference"] = value
        rows.append(row)
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
    error = figure["error"]
    # An error that was not estimated is NaN, or null once it has been JSON.
    spread = "" if error is None or error != error else f" ± {error:.2g}" if error < 0.1 else f" ± {error:.2f}"
    # A count is written as one.
    mean = f"{figure['mean']:.0f}" if not spread and figure["mean"].is_integer() else f"{figure['mean']:.2f}"
    return f"{mean}{spread}"


def facts(found: dict[str, Any]) -> str:
    """How the numbers came about, one line."""
    seeds = ", ".join(map(str, found["seeds"]))
    evaluation = ", ".join(f"{key} {value}" for key, value in found["evaluation"].items())
    return (
        f"seed{'s' if len(found['seeds']) > 1 else ''} {seeds}, commit {', '.join(found['commits'])}, "
        f"{found['seconds'] / 60:.0f} minutes on {', '.join(found['devices'])}"
        f"{f'; evaluated with {evaluation}' if evaluation else ''}; ± is {found['error']}"
    )


def markdown(found: dict[str, Any], figure: str | None) -> str:
    """The table as Markdown, with the command and what made it; ``figure`` is the file of its picture."""
    shown = columns(found)
    head = ["training", "epochs", *(f"`{metric}`" if kind == "measured" else "reported" for metric, kind in shown)]
    body = [[row["training"], str(row["epochs"]), *(cell(row, *column) for column in shown)] for row in found["rows"]]
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    source = f" Reported: {found['source']}." if found["source"] else ""
    picture = ["", f"![{found['question']}]({figure})"] if figure else []
    return "\n".join([f"`{found['command']}`: {facts(found)}.{source}", "", *lines, *picture])


def insert(page: Path, name: str, text: str) -> bool:
    """Put ``text`` between the page's comments `study NAME` and `end NAME`; whether it has them."""
    before = page.read_text(encoding="utf-8")
    place = re.compile(rf"(<!-- study {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    after, count = place.subn(lambda match: f"{match[1]}{text}\n{match[2]}", before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return bool(count)


def draw(figure: Callable[[pd.DataFrame, Axes], None], table: pd.DataFrame, path: Path) -> None:
    """Draw a reproduction's own figure of its runs to ``path``."""
    whole = Figure(figsize=(7, 4), layout="constrained")
    figure(table, whole.subplots())
    whole.savefig(path, dpi=120)
