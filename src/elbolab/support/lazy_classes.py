"""Classes by name, each in a file of that name, imported when it is asked for."""

import ast
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.resources import files
from typing import Generic, TypeVar

T = TypeVar("T")


class LazyClasses(Mapping[str, type[T]], Generic[T]):
    """Classes of ``package``, each the name of one in the file of its key, or a class itself.

    Torch takes two seconds to import, a list of names none.
    """

    def __init__(self, package: str, **classes: str | type[T]) -> None:
        self._package = package
        self.classes = classes

    def __getitem__(self, name: str) -> type[T]:
        if isinstance(found := self.classes[name], str):
            return getattr(import_module(f"{self._package}.{name}"), found)
        return found

    def summary(self, name: str) -> str:
        """The first line of what documents a class: its own docstring, or that of its file, which is not imported."""
        if isinstance(found := self.classes[name], str):
            written = ast.get_docstring(ast.parse(files(self._package).joinpath(f"{name}.py").read_text("utf-8")))
        else:
            written = found.__doc__
        return (written or name).splitlines()[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)
