"""What a report is made of: blocks of a page, sentences with their runs, and one way to write a number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from typing import Any

DASH = "\u2013"
MINUS = "\u2212"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; a dash where there is none."""
    return DASH if value is None or isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def measured(value: float | None, error: float | None, digits: int = 2) -> str:
    """Write a number with its standard error, alone where none is known."""
    text = number(value, digits)
    return text if text == DASH or error is None or not isfinite(error) else f"{text} ± {error:.{digits}f}"


def percent(rate: float | None, error: float | None = None) -> str:
    """Write a rate with its standard error in percent."""
    text = measured(100 * (nan if rate is None else rate), 100 * (nan if error is None else error), 1)
    return text if text == DASH else f"{text} %"


@dataclass(frozen=True)
class Ref:
    """A word that points at a run of the page, or carries a run's colour, or both."""

    text: str
    run: str = ""
    slot: int | None = None
    strong: bool = False


Cell = str | Ref


@dataclass(frozen=True)
class Finding:
    """One sentence computed from the numbers, with the ids of the runs that they came from."""

    text: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first `left` columns are words and the others numbers."""

    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    left: int = 2
    kind: str = "table"


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


@dataclass(frozen=True)
class Notes:
    """Sentences computed from the numbers."""

    sentences: Sequence[Finding]
    kind: str = "notes"


@dataclass(frozen=True)
class Missing:
    """Something that no run on the server has, and the command that makes it."""

    text: str
    command: str
    kind: str = "missing"


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)
