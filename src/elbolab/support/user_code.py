"""Code of the user's own: text that travels with a run, and what it defines once it is executed."""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any

from elbolab.support.code_text import OwnImports, add, add_package, cells_of_main, classes_of, failure, follow, needed
from elbolab.support.errors import UserError

WORD = re.compile(r"(?P<file>.+\.py):(?P<name>[^:/\\]+)", re.DOTALL)
# Of the modules that text becomes, whatever its files are called: two runs may both have a `model.py`.
PACKAGE = "elbolab_user_code_"
MOST_BYTES = 20_000_000
# The file of a class that was defined in a notebook or in the script that runs.
MAIN = "main.py"


@dataclass(frozen=True)
class Source:
    """A class's code: the ``files`` that it needs as text, by path, in which of them it is, and its ``name`` there."""

    file: str
    name: str
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of all that is executed."""
        return hashlib.sha256(json.dumps([self.file, self.name, sorted(self.files.items())]).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        return {"file": self.file, "name": self.name, "files": dict(self.files)}

    @classmethod
    def from_json(cls, value: Any) -> "Source":
        """What ``as_json`` gave; raises ValueError for anything else."""
        match value:
            case {"file": str(file), "name": str(name), "files": dict(files)} if file in files:
                if all(isinstance(path, str) and isinstance(text, str) for path, text in files.items()):
                    return cls(file, name, MappingProxyType(files))
        raise ValueError("its code is not that of a file")


Trust = bool | str | Path | type
"""Whether code that came with a model is executed; of a file or a class, only where it is the same."""

_sources: dict[str, Source] = {}
"""What has been executed or handed over in this process, by digest."""
_objects: dict[str, Any] = {}
_kept: ContextVar[Mapping[str, Source]] = ContextVar("_kept", default=MappingProxyType({}))


def is_word(word: str) -> bool:
    """Whether ``word`` names something in a file: path/to/file.py:Name."""
    return WORD.fullmatch(word) is not None


def find(word: str) -> Any:
    """What path/to/file.py:Name is; raises UserError where there is no such file or name, or executing it fails.

    Within ``kept`` it is that of the code which is kept, whatever the file says now.
    """
    return load(source_of(word))


def source_of(word: str) -> Source:
    """The code of path/to/file.py:Name, that which is ``kept`` first; raises UserError where there is no such file."""
    if (kept := _kept.get().get(word)) is not None:
        return kept
    found = WORD.fullmatch(word)
    if found is None:
        raise UserError(f"{word!r} is no class of a file; write path/to/file.py:Name")
    return _of_file(Path(found["file"]).expanduser(), found["name"])


@contextmanager
def kept(sources: Mapping[str, Source]) -> Iterator[None]:
    """Within it words mean what ``sources`` has of them."""
    token = _kept.set({**_kept.get(), **sources})
    try:
        yield
    finally:
        _kept.reset(token)


def load(source: Source, where: str = "") -> Any:
    """What ``source`` defines, executed once a process; raises UserError where that fails or the name is not there."""
    if (digest := source.digest) not in _objects:
        _sources[digest] = source
        module = _module_name(digest, source.file)
        try:
            __import__(module)
            _objects[digest] = getattr(sys.modules[module], source.name)
        # A script ends by SystemExit.
        except (Exception, SystemExit) as error:
            _forget(digest)
            if isinstance(error, AttributeError) and module in str(error) and source.name in str(error):
                defined = classes_of(source.files[source.file])
                there = f"; there are: {', '.join(defined)}" if defined else ""
                raise UserError(f"{source.file} has no {source.name!r}{there}") from error
            raise UserError(f"{source.file} cannot be executed{where}: {failure(error)}") from error
    return _objects[digest]


def digest_of(code: Mapping[str, Source]) -> str:
    """The digests of several, in the order of their names."""
    return "-".join(code[field].digest for field in sorted(code))


def refuse_untrusted(source: Source, trust: "Trust") -> None:
    """Raise UserError where this code was neither executed in this process before, nor is it that which is trusted."""
    if is_known(source) or trust is True:
        return
    remedy = "add --trust to execute it, or --trust FILE to do so only where it is that of the file"
    if isinstance(trust, type):
        found = of_class(trust)
    elif trust and source.file == MAIN:
        raise UserError(
            f"{source} is what a script or notebook executed, and equals no file; {remedy.partition(',')[0]}"
        )
    elif trust:
        # Who names a file means what lies beside it too, such as nets.
        path = Path(trust).expanduser()
        beside = path.with_name(PurePosixPath(source.file).name)
        found = _of_file(beside if beside.is_file() else path, source.name)
    else:
        raise UserError(f"{source} is code that came with the model and is not executed unasked; {remedy}")
    if found.digest != source.digest:
        raise UserError(f"{source}, which came with the model, is not the code of {found}; {remedy}")


def executed(source: Source) -> Any:
    """What the text of ``source`` defines, also where a class of this process is known for it."""
    _sources.setdefault(digest := source.digest, source)
    __import__(module := _module_name(digest, source.file))
    return getattr(sys.modules[module], source.name)


def is_known(source: Source) -> bool:
    """Whether this very code was executed in this process, or handed over to it."""
    return source.digest in _objects


def is_own(kind: type) -> bool:
    """Whether a class is of this package, and not the user's."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def of_class(kind: type) -> Source:
    """The code of a class that was defined in a file, a notebook or the script that runs.

    Raises UserError where it cannot be read, or does not define the class when it is executed by itself.
    """
    known = next((digest for digest, one in _objects.items() if one is kind), None)
    if known is not None:
        return _sources[known]
    if "<locals>" in kind.__qualname__ or "." in kind.__qualname__:
        raise UserError(f"{kind.__qualname__} is defined within something else; define it at the top of a file or cell")
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__ != "__main__" and file is not None:
        source = _of_file(Path(file), kind.__name__)
    else:
        cells, root = cells_of_main(kind)
        files = {MAIN: needed(cells, kind.__name__)}
        follow(root, ast.parse(files[MAIN]), files)
        source = Source(MAIN, kind.__name__, files)
        # Else it would fail only where it is loaded, after the hours of a training.
        load(source, " by itself, so that it could not be loaded again; define it in a file")
    _sources[source.digest], _objects[source.digest] = source, kind
    return source


def _of_file(path: Path, name: str) -> Source:
    path = path.absolute()
    if not path.is_file():
        raise UserError(f"{path} is not there; name a Python file, as path/to/file.py:{name}")
    if "." in path.stem:
        raise UserError(f"{path} has a dot in its name, so that Python cannot import it; rename it")
    # A file of a package is imported as part of it.
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    files: dict[str, str] = {}
    if root != path.parent:
        add_package(root, root / path.relative_to(root).parts[0], files)
    else:
        add(root, path, files)
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise UserError(f"{path} imports {size:,} bytes of code beside it, more than {MOST_BYTES:,}; move it elsewhere")
    source = Source(path.relative_to(root).as_posix(), name, MappingProxyType(files))
    _roots[source.digest] = root
    return source


_roots: dict[str, Path] = {}
"""Folders of what was read in this process, by digest."""


def _module_name(digest: str, file: str) -> str:
    parts = PurePosixPath(file).with_suffix("").parts
    return ".".join((PACKAGE + digest, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _forget(digest: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE + digest]:
        del sys.modules[name]


class _Loader(InspectLoader):
    """Executes the text of one of the files of a ``Source``."""

    def __init__(self, source: Source, file: str | None) -> None:
        self._source, self._file = source, file

    def get_source(self, fullname: str) -> str:
        return self._source.files[self._file] if self._file else ""

    def get_filename(self, fullname: str) -> str:
        """Of the file itself, where its text was read from one, so that a debugger finds it."""
        root = _roots.get(self._source.digest)
        if root and self._file:
            return str(root / self._file)
        # Not in angle brackets, for which Python looks up no source.
        return f"{PACKAGE}{self._source.digest}/{self._file or '__init__.py'}"

    def is_package(self, fullname: str) -> bool:
        return self._file is None or self._file.endswith("__init__.py")

    def get_code(self, fullname: str) -> Any:
        own = {PurePosixPath(file).with_suffix("").parts[0] for file in self._source.files}
        tree = ast.parse(self.get_source(fullname))
        whole = ast.fix_missing_locations(OwnImports(fullname.partition(".")[0], sorted(own)).visit(tree))
        return compile(whole, self.get_filename(fullname), "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds the modules of every ``Source`` of this process."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *parts = fullname.split(".")
        source = _sources.get(package.removeprefix(PACKAGE)) if package.startswith(PACKAGE) else None
        if source is None:
            return None
        whole = "/".join(parts)
        known = [file for file in (f"{whole}.py", f"{whole}/__init__.py") if file in source.files]
        if parts and not known and not any(file.startswith(f"{whole}/") for file in source.files):
            return None
        loader = _Loader(source, known[0] if known else None)
        spec = ModuleSpec(fullname, loader, is_package=loader.is_package(fullname))
        if known:
            spec.origin, spec.has_location = loader.get_filename(fullname), True
        return spec


sys.meta_path.insert(0, _Finder())
