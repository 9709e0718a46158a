"""Draws architecture.svg: the rooms of elbolab, and which of them imports from which, as the source has it.

python docs/architecture.py
"""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "elbolab"
ROOMS = (
    *("support", "config", "data", "models", "training", "evaluation", "tracking", "registry", "report", "experiment"),
    *("tuning", "explorer", "testing", "cli", "__main__"),
)
"""In their order: each imports from those before it alone."""


def modules() -> dict[str, Path]:
    """The files of the package by the names of their modules."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(("elbolab", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imports() -> dict[str, set[str]]:
    """The modules of the package that each imports, those in functions and for type checkers too."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        nodes = list(ast.walk(ast.parse(file.read_text())))
        named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {part if part in known else node.module for part in whole}
        found[name] = (named & known.keys()) - {name}
    return found


def room(module: str) -> str:
    """The folder or file of the package that a module lies in; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def draw() -> str:
    """The picture, as SVG: a row and a column a room; a square is as dark as many files of the row import it."""
    rows = [name for name in ROOMS if name != "__main__"]
    uses = Counter((room(name), used) for name, deps in imports().items() for used in {room(dep) for dep in deps})
    cell, left, top = 26, 116, 84
    width, height = left + cell * len(rows) + 40, top + cell * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="14" fill="#1f2328">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, name in enumerate(rows):
        y, x = top + cell * place, left + cell * place
        parts += [
            f'<text x="16" y="{y + 18}">{name}</text>',
            f'<text transform="translate({x + 17} {top - 6}) rotate(-60)">{name}</text>',
            f'<path d="M16 {y + cell}H{left + cell * len(rows)}" stroke="#d1d9e0"/>',
            f'<rect x="{x + 3}" y="{y + 3}" width="{cell - 6}" height="{cell - 6}" fill="none" stroke="#59636e"/>',
        ]
        for column, used in enumerate(rows):
            if (files := uses[name, used]) and used != name:
                opacity = min(1.0, 0.25 + 0.15 * files)
                parts.append(
                    f'<rect x="{left + cell * column + 3}" y="{y + 3}" width="{cell - 6}" height="{cell - 6}"'
                    f' fill="#0550ae" fill-opacity="{opacity:.2f}"><title>{name} imports {used} in {files}'
                    f" file{'s' * (files > 1)}</title></rect>"
                )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
