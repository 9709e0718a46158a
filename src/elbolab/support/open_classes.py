"""Classes by name that others may add to: of this package, of installed ones, of a file of the user's."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any, TypeVar

from elbolab.support import entry_points, user_code
from elbolab.support.errors import UserError, shown
from elbolab.support.lazy_classes import LazyClasses

T = TypeVar("T")


class OpenClasses(LazyClasses[T]):
    """``LazyClasses`` that derive from ``contract`` of the package's module ``base``.

    After them come the entry points of ``group`` of other packages. Beside them path/to/file.py:Name is a key, but none
    that is listed, nor are the ``unlisted``, which nobody asks for by name.
    """

    def __init__(
        self,
        package: str,
        contract: str,
        group: str,
        unlisted: Mapping[str, str] = MappingProxyType({}),
        **classes: str | type[T],
    ) -> None:
        super().__init__(package, **classes, **unlisted)
        self._contract = contract
        self._group = group
        self._unlisted = unlisted

    def __getitem__(self, name: str) -> type[T]:
        if user_code.is_word(name):
            return self.checked(user_code.find(name), name)
        if name not in self.classes and name in self._added:
            return self.checked(entry_points.load(self._added[name]), name)
        return super().__getitem__(name)

    @property
    def _added(self) -> Mapping[str, EntryPoint]:
        return entry_points.found(self._group)

    def find(self, which: str | type[T]) -> type[T]:
        """The class of this name, or ``which`` itself; raises UserError where it is none of the contract's."""
        if not isinstance(which, str):
            return self.checked(which, getattr(which, "__name__", shown(which)))
        try:
            return self[which]
        except KeyError:
            known = f"there are: {', '.join(self)}, and path/to/file.py:Name"
            raise UserError(f"{self._contract.lower()}={which!r} does not exist; {known}") from None

    def checked(self, kind: Any, name: str) -> type[T]:
        """``kind`` itself; raises UserError where it is no class that derives from the contract and is whole."""
        contract = getattr(import_module(f"{self._package}.base"), self._contract)
        if not isinstance(kind, type) or not issubclass(kind, contract):
            bases = [one.__name__ for one in kind.__bases__] if isinstance(kind, type) else []
            other = f"a class that derives from {', '.join(bases)}" if bases else shown(kind)
            raise UserError(f"{name} is {other}; derive a class from elbolab's {self._contract} or one of its classes")
        if missing := sorted(getattr(kind, "__abstractmethods__", ())):
            raise UserError(f"{name} has no {', '.join(missing)}; define what {contract.__module__} says of it")
        if (own := kind.__name__) in self.classes and self[own] is not kind:
            raise UserError(f"{name} has the name of one of elbolab's own; rename the class")
        return kind

    def name_of(self, kind: type[T]) -> str:
        """The name of a class: its key, or of a class of the user's its own."""
        for name, found in self.classes.items():
            if found in (kind, kind.__name__) and self[name] is kind:
                return name
        where = f"{kind.__module__}:{kind.__qualname__}"
        return next((name for name, entry in self._added.items() if entry.value == where), kind.__name__)

    def summary(self, name: str) -> str:
        """The first line of what documents a class; of one of another package, which is not imported, whose it is."""
        if name in self.classes:
            return super().summary(name)
        return f"A model of the package {entry_points.package(self._added[name])}."

    def summary_of(self, kind: type[T]) -> str:
        """The first line of what documents a class."""
        name = self.name_of(kind)
        return self.summary(name) if name in self.classes else (kind.__doc__ or name).splitlines()[0]

    def __contains__(self, name: object) -> bool:
        return name in self.classes or name in self._added

    def __iter__(self) -> Iterator[str]:
        return (name for name in {**self.classes, **self._added} if name not in self._unlisted)

    def __len__(self) -> int:
        return len(list(iter(self)))
