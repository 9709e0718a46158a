"""The blocks of a report's page, and the blocks that several sections share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from elbolab.report import plots
from elbolab.report.collect import DATA_FLAGS, SPLITS, Comparison, Entry, Sentence, public
from elbolab.report.plots import Series
from elbolab.support.number_formats import DAGGER, UNRELIABLE

OBSERVATION_FLAGS = ("likelihood", "sigma")


@dataclass(frozen=True)
class Ref:
    """A word or number that points at a run of the page, or carries a run's colour, or both."""

    text: str
    run: str = ""
    slot: int | None = None
    strong: bool = False


Cell = str | Ref | tuple[Ref, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first `left` columns are words and the others numbers; its name is told to LaTeX."""

    name: str
    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    left: int = 2
    kind: str = "table"

    def owner(self, row: Sequence[Cell]) -> str:
        """The run that a row's numbers are of, the first of several; empty where the row names none."""
        cells = (one for cell in row[: self.left] for one in (cell if isinstance(cell, tuple) else (cell,)))
        return next((cell.run for cell in cells if isinstance(cell, Ref) and cell.run), "")

    @property
    def note(self) -> str:
        """What stands under the table: what the dagger means, where there is one."""
        cells = (cell for row in self.rows for cell in row)
        words = (cell.text if isinstance(cell, Ref) else cell for cell in cells)
        return UNRELIABLE if any(DAGGER in word for word in words if isinstance(word, str)) else ""


@dataclass(frozen=True)
class Heat:
    """Confusion tables, one a run with its images: rows of counts, each with its share of the row, from 0 to 1."""

    caption: str
    tables: Sequence[tuple[Ref, int, list[list[tuple[int, float]]]]]
    down: str
    across: str
    kind: str = "heat"


@dataclass(frozen=True)
class Figures:
    """Line figures of the same runs, as SVG text; a wide one fills its row."""

    caption: str
    runs: Sequence[Ref]
    svgs: Sequence[str]
    wide: bool = False
    kind: str = "figures"


@dataclass(frozen=True)
class Picture:
    """A PNG data address with its words, its run and its size in image pixels."""

    src: str
    alt: str
    width: int
    height: int
    caption: str = ""
    run: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures, two a row on wide screens."""

    caption: str
    pictures: Sequence[Picture]
    kind: str = "pictures"


@dataclass(frozen=True)
class Gallery:
    """Single images: class, index, original, and what each run makes of it with its number."""

    caption: str
    head: Sequence[Ref]
    rows: Sequence[tuple[int, int, Picture, list[tuple[Picture | None, str]]]]
    kind: str = "gallery"

    @property
    def note(self) -> str:
        """What stands under the gallery: what the dagger means, where there is one."""
        return UNRELIABLE if any(DAGGER in text for *_, cells in self.rows for _, text in cells) else ""


@dataclass(frozen=True)
class Notes:
    """Sentences computed from the numbers."""

    sentences: Sequence[Sentence]
    kind: str = "notes"

    @property
    def note(self) -> str:
        """What stands under them: what the dagger means, where there is one."""
        return UNRELIABLE if any(DAGGER in sentence.text for sentence in self.sentences) else ""


@dataclass(frozen=True)
class Missing:
    """Something that no run on the server has, and the command that makes it."""

    text: str
    command: str
    kind: str = "missing"


@dataclass(frozen=True)
class Section:
    """A titled part of a dataset's page."""

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def ref(entry: Entry) -> Ref:
    """Name an entry in its colour, with its run."""
    return Ref(entry.label, entry.run.id, entry.slot)


def start(entry: Entry) -> list[Cell]:
    """Return a row's first two cells: the entry in its colour, and its run."""
    return [Ref(entry.label, slot=entry.slot), short(entry.run.id)]


def short(run: str) -> Ref:
    """Point at a run by the first characters of its id."""
    return Ref(run[:8], run)


def shorts(entry: Entry) -> tuple[Ref, ...]:
    """Point at each seed's run of an entry."""
    return tuple(short(run.id) for run in entry.runs)


def notes(comparison: Comparison, topic: str, *models: str) -> list[Notes]:
    """Return the sentences of a topic, of some models where named."""
    ids = {entry.run.id for entry in comparison.of(*models)}
    found = [item for item in comparison.findings[topic] if not models or item.runs[0] in ids]
    return [Notes(found)] if found else []


def train_command(comparison: Comparison, model: str) -> str:
    """Return the command that trains a model on the report's data, with its observation model."""
    latent = comparison.latents
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
    """Return training and validation values by epoch, one figure a key; one epoch, as of a closed form, is no curve."""
    svgs, drawn = [], set()
    for key, title, unit in keys:
        series = []
        for entry in entries:
            for split in ("val", "train"):
                values = comparison.curves.get((entry.run.id, f"{split}/{key}"), {})
                if len(values) > 1:
                    drawn.add(entry.run.id)
                    name, dashed = f"{entry.label} {SPLITS[split]}", split == "train"
                    series.append(Series(name, entry.slot, list(values), list(values.values()), dashed=dashed))
        if series:
            name = "-".join([key, *(entry.run.id[:8] for entry in entries)])
            svgs.append(plots.curves(name, title, unit, series))
    names = [ref(entry) for entry in entries if entry.run.id in drawn]
    return [Figures("Solid: validation; dashed: training.", names, svgs)] if svgs else []


def epochs(entries: Sequence[Entry], *keys: str) -> list[int]:
    """Return the epochs at which any of the runs logged any of the keys."""
    return sorted({epoch for entry in entries for key in keys for epoch in entry.pictures[key]})


def picture(entry: Entry, key: str, epoch: int, caption: str) -> Picture | None:
    """Return a logged grid of digits, None where that epoch has none."""
    if (content := entry.pictures[key].get(epoch)) is None:
        return None
    what = "digits decoded from the prior" if key == "samples" else "ten originals above their reconstructions"
    src, width, height = plots.picture(content, f"{key} of run {entry.run.id} at epoch {epoch}")
    return Picture(src, f"{caption}: {what}", width, height, caption, entry.run.id)


def pictures(caption: str, items: Iterable[Picture | None]) -> list[Pictures]:
    """Return a block of the pictures that exist."""
    have = [item for item in items if item]
    return [Pictures(caption, have)] if have else []


def ten_table(entries: Sequence[Entry]) -> list[Table]:
    """Return the classes that the classifier gives the fixed digits and their reconstructions."""
    tens = [(entry, split, ten) for entry in entries for split, ten in entry.classes.get("ten", {}).items()]
    # A split may have no image of a class.
    labels = sorted({one["label"] for _, _, ten in tens for one in ten})
    rows: list[list[Cell]] = []
    for entry, split, ten in tens:
        pairs = {one["label"]: (one["original"], one["reconstruction"]) for one in ten}
        changed = sum(a != b for a, b in pairs.values())
        rows.append([*start(entry), split, *(_change(pairs.get(y)) for y in labels), f"{changed} of {len(ten)}"])
    caption = "The class given to each fixed digit and, where it differs (→), to its reconstruction."
    return (
        [
            Table(
                f"fixed digits {' '.join(entry.label for entry in entries)}",
                caption,
                ["Model", "Run", "Split", *map(str, labels), "Changed"],
                rows,
                left=3,
            )
        ]
        if rows
        else []
    )


def _change(pair: tuple[int, int] | None) -> Cell:
    if pair is None:
        return ""
    a, b = pair
    return str(a) if a == b else Ref(f"{a} → {b}", strong=True)
