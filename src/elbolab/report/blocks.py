"""The blocks of a report's page, and the blocks that several sections share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan

from elbolab.evaluation.metrics import CLASS_PRESERVATION, TEST, TRAIN, VAL, Metric
from elbolab.report import plots
from elbolab.report.collect import SPLITS, Comparison, Entry, Row
from elbolab.report.commands import evaluate_again, train_classifier
from elbolab.report.plots import Series
from elbolab.report.sentences import Sentence
from elbolab.support.number_formats import DAGGER, DASH, MINUS, between, dagger, measured, number, rate_between
from elbolab.tracking.keys import CLASSES

MOST_COLUMNS = 5
"""In so many columns the digits of a grid can still be seen."""


@dataclass(frozen=True)
class Ref:
    """A word or number that points at a run of the page, or carries a run's colour, or both."""

    text: str
    run: str = ""
    slot: int | None = None
    strong: bool = False


Cell = str | Ref | tuple[Ref, ...]


@dataclass(frozen=True)
class Block:
    """A part of a section; the templates know it by its kind."""

    @property
    def kind(self) -> str:
        """The name of its class, in small letters."""
        return type(self).__name__.lower()

    @property
    def doubtful(self) -> bool:
        """Whether any of its numbers bears the dagger of what is unreliable."""
        return DAGGER in repr(self)


@dataclass(frozen=True)
class Table(Block):
    """A table whose first `left` columns are words and the others numbers; its name is told to LaTeX."""

    name: str
    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    left: int = 2

    def owner(self, row: Sequence[Cell]) -> str:
        """The run that a row's numbers are of, the first of several; empty where the row names none."""
        cells = (one for cell in row[: self.left] for one in (cell if isinstance(cell, tuple) else (cell,)))
        return next((cell.run for cell in cells if isinstance(cell, Ref) and cell.run), "")


@dataclass(frozen=True)
class Heat(Block):
    """Confusion tables, each with its run and what was counted: rows of counts with their shares of the row."""

    caption: str
    tables: Sequence[tuple[Ref, str, list[list[tuple[int, float]]]]]
    classes: Sequence[str]
    down: str
    across: str


@dataclass(frozen=True)
class Figures(Block):
    """Line figures of the same runs, as SVG text; a wide one fills its row."""

    caption: str
    runs: Sequence[Ref]
    svgs: Sequence[str]
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG data address with its words, its run and its size in image pixels; a ``mark`` stands out."""

    src: str
    alt: str
    width: int
    height: int
    caption: str = ""
    run: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Pictures(Block):
    """Pictures in rows; of each of ``columns``, run ids, one below the other where there is the room."""

    caption: str
    rows: Sequence[Sequence[Picture]]
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Gallery(Block):
    """Single images: class, index, original, and what each run makes of it with its number."""

    caption: str
    head: Sequence[Ref]
    rows: Sequence[tuple[str, int, Picture, list[tuple[Picture | None, str]]]]


@dataclass(frozen=True)
class Notes(Block):
    """Sentences computed from the numbers."""

    sentences: Sequence[Sentence]


@dataclass(frozen=True)
class Conclusion(Notes):
    """The sentences that a page begins with."""


@dataclass(frozen=True)
class Card:
    """A run's headline number with its error, and what it is."""

    who: Ref
    value: str
    error: str
    unit: str


@dataclass(frozen=True)
class Cards(Block):
    """Headline numbers beside each other."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Missing(Block):
    """Something that a run which is shown lacks, and the command that makes it."""

    text: str
    command: str
    title: str = "Missing"


@dataclass(frozen=True)
class Section:
    """A titled part of a dataset's page."""

    id: str
    title: str
    blocks: Sequence[Block]


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


def notes(*sentences: Sentence | None) -> list[Notes]:
    """Return a block of the sentences that there are."""
    found = [sentence for sentence in sentences if sentence]
    return [Notes(found)] if found else []


def head(metric: Metric, split: str = "") -> str:
    """Return the head of a metric's column, of one split where it is named."""
    return f"{SPLITS[split].capitalize()} {metric.label}" if split else metric.label


def shown(metric: Metric, row: Row) -> str:
    """Write a row's value of a metric with its standard error, marked where it is unreliable; a dash without one."""
    value, error = row.get(metric.name), row.get(metric.error_names[0]) if metric.errors else None
    return dagger(measured(value, error, metric.digits), row.get("unreliable") if metric.doubt else False)


def kept(row: Row) -> str:
    """Write a row's class preservation with its 95% interval."""
    return rate_between(*(row.get(name, nan) for name in CLASS_PRESERVATION.names))


def state(*entries: Entry) -> str:
    """Write why some entries are not to be ranked, since one has not converged; empty where all have."""
    known = {entry.converged for entry in entries}
    return "not converged" if False in known else "not known to have converged" if None in known else ""


def marked(text: str, entry: Entry) -> str:
    """Write a number or name with what forbids to rank its entry."""
    return f"{text}, {state(entry)}" if state(entry) else text


def difference(row: Row, doubtful: bool, why_not: str) -> list[Cell]:
    """Write a row's mean difference, marked where it is doubtful, and its 95% interval; or why there is no ranking."""
    if why_not:
        return [why_not, DASH]
    mean = number(row["mean"], error=(row["high"] - row["low"]) / 2)
    return [dagger(mean, doubtful), between(row["low"], row["high"])]


def lost(models: Mapping[str, str]) -> list[Missing]:
    """Return a notice for each run that is left out, given its model by id, with the command that makes its files."""
    why = "since files of its evaluation are not there any more, or cannot be read"
    return [
        Missing(f"A run of {model}, {run[:8]}, {why}.", f"elbolab evaluate {run}", "Left out")
        for run, model in models.items()
    ]


def unevaluated(entries: Sequence[Entry]) -> list[Missing]:
    """Return a notice for each of the entries that lacks an evaluation, or one by a classifier."""
    notices = []
    for entry in entries:
        # Images without labels are judged by no classifier.
        if entry.evaluated and (entry.classes or entry.run.tags.get(CLASSES) == "1"):
            continue
        text = f"{entry.label} has not been evaluated."
        if entry.evaluated:
            text = (
                f"{entry.label} was evaluated without a classifier, so that class preservation is not available. Where "
                f"there is no cnn of these data, train one by {train_classifier(entry.run)}, and evaluate again."
            )
        notices.append(Missing(text, evaluate_again(entry.run)))
    return notices


def heat(comparison: Comparison, entries: Sequence[Entry], caption: str, down: str, across: str) -> list[Heat]:
    """Return the confusions of some runs on validation and test images, nothing where none was counted."""
    tables = []
    for entry, split in product(entries, (VAL, TEST)):
        if found := entry.classes.get("splits", {}).get(split):
            lines = [[(count, count / max(sum(line), 1)) for count in line] for line in found["confusion"]]
            tables.append((ref(entry), f"{found['n']} {SPLITS[split]} images", lines))
    classes = [comparison.class_name(label) for label in range(max((len(lines) for *_, lines in tables), default=0))]
    return [Heat(caption, tables, classes, down, across)] if tables else []


def curve_blocks(
    comparison: Comparison, entries: Sequence[Entry], metrics: Iterable[Metric], negative: Metric | None = None
) -> list[Figures]:
    """Return training and validation values by epoch, one figure a metric, the ``negative`` one with its sign changed.

    A closed form has no curve.
    """
    svgs, drawn, figures = [], set(), []
    entries = [entry for entry in entries if not entry.closed_form]
    for metric in metrics:
        series = []
        for entry, split in product(entries, (VAL, TRAIN)):
            values = comparison.curves.get((entry.run.id, metric.at(split)), {})
            if len(values) > 1:
                drawn.add(entry.run.id)
                name, dashed = f"{entry.label} {SPLITS[split]}", split == TRAIN
                sign = -1 if metric is negative else 1
                y = [sign * value for value in values.values()]
                series.append(Series(name, entry.slot, list(values), y, dashed=dashed))
        if series:
            name = "-".join([metric.name, *(entry.run.id[:8] for entry in entries)])
            title = f"{MINUS if metric is negative else ''}{metric.label} ({metric.unit})"
            svgs.append(plots.curves(name, title, series))
            figures.append(series)
    names = [ref(entry) for entry in entries if entry.run.id in drawn]
    caption = f"Solid: validation; dashed: training.{plots.cut_note(figures)}"
    return [Figures(caption, names, svgs)] if svgs else []


def picture_rows(comparison: Comparison, entries: Sequence[Entry], key: str, caption: str) -> list[Pictures]:
    """Return the grids that the runs logged under a key: those of one run in a row, of several a row an epoch.

    The last rows are the best epoch of each run, or the latest that there is a picture of, and where that is another
    its last epoch.
    """
    entries = [entry for entry in entries if entry.pictures.get(key)]
    early: dict[int, list[Picture]] = {}
    best, last = [], []
    for entry in entries:
        epochs = sorted(entry.pictures[key])
        judged = comparison.best_epoch(entry)
        chief = judged if judged in epochs else epochs[-1]
        for epoch in epochs:
            shown = picture(comparison, entry, key, epoch)
            if epoch == chief:
                best.append(shown)
            elif epoch == comparison.last_epoch(entry):
                last.append(shown)
            else:
                early.setdefault(epoch, []).append(shown)
    if len(entries) == 1:
        rows = [[picture(comparison, entries[0], key, epoch) for epoch in sorted(entries[0].pictures[key])]]
    else:
        rows = [row for row in (*(early[epoch] for epoch in sorted(early)), best, last) if row]
    columns = [entry.run.id for entry in entries] if 1 < len(entries) <= MOST_COLUMNS else []
    return [Pictures(caption, rows, columns)] if rows else []


def picture(comparison: Comparison, entry: Entry, key: str, epoch: int) -> Picture:
    """Return a logged grid of digits, marked as of the best or last epoch; raises UserError where it is no PNG."""
    what = "images decoded from the prior" if key == "samples" else "originals above their reconstructions"
    src, width, height = plots.picture(entry.pictures[key][epoch], f"{key} of run {entry.run.id} at epoch {epoch}")
    if entry.closed_form:
        return Picture(src, f"{entry.label}: {what}", width, height, entry.label, entry.run.id)
    caption = f"{entry.label}, epoch {epoch}"
    named = {"best": comparison.best_epoch(entry), "last": comparison.last_epoch(entry)}
    mark = " and ".join(name for name, marked in named.items() if marked == epoch)
    return Picture(src, f"{caption}{mark and ', '}{mark}: {what}", width, height, caption, entry.run.id, mark)
