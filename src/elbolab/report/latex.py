"""A report's tables as LaTeX (booktabs), from the very blocks that its page shows."""

from collections.abc import Iterable, Sequence
from typing import Any

from elbolab.report.blocks import Cell, Ref, Table
from elbolab.support.number_formats import UNRELIABLE

ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$"}
    | {"±": r"$\pm$", "\u2212": "$-$", "→": r"$\to$", "\u2013": "--"}
    | {"\u2020": r"\textdagger{}", "é": r"\'e"}
)
HEAD = "% The tables of an elbolab report; in the preamble: \\usepackage{booktabs,graphicx}\n"
# Only what is wider than a line gets smaller.
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"


def write(parts: Iterable[tuple[str, Sequence[Any]]]) -> str:
    """Return every table among the blocks of each dataset, named by the dataset and by what it shows."""
    return HEAD + "".join(table(data, block) for data, blocks in parts for block in blocks if block.kind == "table")


def table(data: str, block: Table) -> str:
    """Return one table."""
    columns = "l" * block.left + "r" * (len(block.head) - block.left)
    caption = escape(f"{data}: {block.caption}" if data else block.caption)
    label = "".join(c if c.isalnum() else "-" for c in f"{data} {block.name}".strip())
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}\smallskip",
        FITTED + rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row(block.head),
        r"\midrule",
        *(row(cells) for cells in block.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip\footnotesize {escape(UNRELIABLE)}"] if block.doubtful else []),
        r"\end{table}",
    ]
    return "\n" + "\n".join(lines) + "\n"


def row(cells: Iterable[Cell]) -> str:
    """Return one line of a table."""
    return " & ".join(words(cell) for cell in cells) + r" \\"


def words(cell: Cell) -> str:
    """Return a cell: runs in typewriter, what is strong in bold."""
    if isinstance(cell, str):
        return escape(cell)
    if isinstance(cell, Ref):
        text = escape(cell.text)
        named = cell.slot is None and cell.text == cell.run[:8]
        return rf"\texttt{{{text}}}" if named else rf"\textbf{{{text}}}" if cell.strong else text
    return ", ".join(words(one) for one in cell)


def escape(text: str) -> str:
    """Return plain words as LaTeX."""
    return " ".join(text.split()).translate(ESCAPES)
