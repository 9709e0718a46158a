"""The text of a user's own code: what a file imports beside it, and what a class of a script or notebook needs."""

import ast
import sys
import tokenize
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from elbolab.support.errors import UserError


def failure(error: BaseException) -> str:
    """What an error in the user's code was, and in which line of which file, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    line = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    if isinstance(error, SyntaxError):
        line = f" ({Path(error.filename or '').name}, line {error.lineno})"
    text = " ".join(str(getattr(error, "msg", None) or error).split())
    return f"{type(error).__name__}: {text:.200}{line}"


def add(root: Path, path: Path, files: dict[str, str]) -> None:
    """Read a file, and every file and package beside it that it imports."""
    if (name := path.relative_to(root).as_posix()) in files:
        return
    try:
        # As Python reads it: a line of the file may name its encoding.
        with tokenize.open(path) as file:
            files[name] = file.read()
        tree = ast.parse(files[name], str(path))
    except (OSError, SyntaxError, ValueError) as error:
        files.pop(name, None)
        raise UserError(f"{path} cannot be read: {failure(error)}") from error
    follow(root, tree, files)


def follow(root: Path, tree: ast.AST, files: dict[str, str]) -> None:
    """Read the files and packages in ``root`` that a file imports."""
    for module in sorted(_imported(tree)):
        if (file := root / f"{module}.py").is_file():
            add(root, file, files)
        elif (root / module / "__init__.py").is_file() or _is_namespace(root / module):
            add_package(root, root / module, files)


def add_package(root: Path, folder: Path, files: dict[str, str]) -> None:
    """The same of every file of a package that can be read; where another is imported, that fails."""
    for file in sorted(folder.rglob("*.py")):
        with suppress(UserError):
            add(root, file, files)


def _is_namespace(folder: Path) -> bool:
    """Whether Python takes a folder without __init__.py as a package: no other of that name is installed."""
    if next(folder.glob("*.py"), None) is None:
        return False
    spec = find_spec(folder.name)
    return spec is None or spec.origin is None


def _imported(tree: ast.AST) -> set[str]:
    """The first parts of the names of the modules that a file imports by their whole names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def classes_of(text: str) -> list[str]:
    """The names of the classes at the top of ``text``."""
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


def cells_of_main(kind: type) -> tuple[list[str], Path]:
    """The cells that were executed in a notebook, else the script that runs; and the folder that it imports from."""
    if (shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()) is not None:
        # As Python has it: %magic is a call.
        return list(shell.history_manager.input_hist_parsed), Path.cwd()
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:
        raise UserError(f"the code of {kind.__name__} cannot be read; define it in a file or a notebook")
    with tokenize.open(file) as script:
        return [script.read()], Path(file).absolute().parent


def needed(cells: Sequence[str], name: str) -> str:
    """The statements at the top of ``cells`` that the class ``name`` needs, in their order.

    A cell is often executed again: the class is the last of its name, and of anything else every binding is kept, each
    text once.
    """
    statements = [node for cell in cells for node in _statements(cell) if not _is_guard(node)]
    texts = [ast.unparse(node) for node in statements]
    bound = [set() if own in texts[:place] else _bound(statements[place]) for place, own in enumerate(texts)]
    kept = {place for place, node in enumerate(statements) if _is_always_needed(node)}
    own = [place for place, node in enumerate(statements) if name in _bound(node)]
    first = max((place for place in own if isinstance(statements[place], ast.ClassDef)), default=0)
    # What is added to the class after it, too.
    new = {place for place in own if place >= first} or {first}
    known = {name}
    while new:
        kept |= new
        nodes = [node for place in new for node in ast.walk(statements[place]) if isinstance(node, ast.Name)]
        wanted = {node.id for node in nodes if isinstance(node.ctx, ast.Load)} - known
        known |= wanted
        new = {place for place, names in enumerate(bound) if names & wanted} - kept
    # Python wants those of __future__ first.
    order = sorted(kept, key=lambda place: (getattr(statements[place], "module", None) != "__future__", place))
    return "\n\n".join(texts[place] for place in order) + "\n"


def _statements(text: str) -> list[ast.stmt]:
    # A cell that could not be read was not executed.
    with suppress(SyntaxError):
        return ast.parse(text).body
    return []


def _is_always_needed(node: ast.stmt) -> bool:
    """Whether it says how all is read, or binds names that it does not name."""
    return isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*")


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in part.names}
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
        elif isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store):
            # It changes what the name has.
            whole = part.value
            while isinstance(whole, ast.Attribute | ast.Subscript):
                whole = whole.value
            found |= {whole.id} if isinstance(whole, ast.Name) else set()
        elif isinstance(part, ast.ClassDef | ast.FunctionDef):
            found.add(part.name)
    return found


class OwnImports(ast.NodeTransformer):
    """Has a file import what came with it by the names that its modules have here."""

    def __init__(self, package: str, own: Sequence[str]) -> None:
        self._package, self._own = package, own

    def _is_own(self, module: str | None) -> bool:
        return module is not None and module.partition(".")[0] in self._own

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        if not node.level and self._is_own(node.module):
            node.module = f"{self._package}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for alias in node.names:
            if not self._is_own(alias.name):
                found.append(ast.Import([alias]))
                continue
            whole, first = f"{self._package}.{alias.name}", alias.name.partition(".")[0]
            found.append(ast.Import([ast.alias(whole, alias.asname or "_")]))
            if alias.asname is None:
                found.append(ast.ImportFrom(self._package, [ast.alias(first)], 0))
        return [ast.copy_location(one, node) for one in found]
