"""What installed packages add to elbolab: their entry points, by group and name, imported when they are asked for."""

import sys
from collections.abc import Callable, Iterator, MutableMapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from elbolab.support.errors import UserError, reason

T = TypeVar("T")


def found(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by their names, such as ``elbolab.datasets``; nothing of them is imported."""
    # A notebook that puts a package on the path has it at once.
    return _found(group, tuple(sys.path))


@lru_cache
def _found(group: str, _: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def package(entry: EntryPoint) -> str:
    """The name of the package that an entry point is of."""
    return entry.dist.name if entry.dist is not None else "unknown"


def load(entry: EntryPoint) -> Any:
    """What an entry point names; raises UserError, naming its package, where that cannot be imported, is no function
    and no class, or is of two packages.
    """
    for other in entry_points(group=entry.group, name=entry.name):
        if other.value != entry.value:
            both = " and ".join(f"{package(one)} ({one.value})" for one in (entry, other))
            raise UserError(f"{entry.group} {entry.name!r} is of two packages, {both}; uninstall one of them")
    said = f"{entry.group} {entry.name!r} of the package {package(entry)}"
    try:
        named = entry.load()
    # An import runs whatever the package has.
    except Exception as error:
        raise UserError(
            f"{said} cannot be loaded from {entry.value}: {type(error).__name__}: {reason(error)}; mend or uninstall it"
        ) from error
    if not callable(named):
        raise UserError(f"{said} is {entry.value}, a {type(named).__name__}; it must be a function or a class")
    return named


class Extensible(MutableMapping[str, T], Generic[T]):
    """What this package has by name, and after it what entry points of ``group`` add, as ``checked`` returns it.

    Names of this package win, and where one is asked for that another package has too, a line on stderr says so.
    """

    def __init__(self, group: str, own: dict[str, T], checked: Callable[[T, EntryPoint], T]) -> None:
        self._group, self._own, self._checked = group, own, checked
        self._loaded: dict[EntryPoint, T] = {}
        self._told = set[str]()

    def __getitem__(self, name: str) -> T:
        entry = found(self._group).get(name)
        if name in self._own:
            if entry is not None and name not in self._told:
                self._told.add(name)
                print(
                    f"elbolab: {name} is elbolab's own, not the {self._group} {name!r} of the package {package(entry)}",
                    file=sys.stderr,
                    flush=True,
                )
            return self._own[name]
        if entry is None:
            raise KeyError(name)
        # Once, so that it is the same at each call.
        if entry not in self._loaded:
            self._loaded[entry] = self._checked(load(entry), entry)
        return self._loaded[entry]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in found(self._group)

    def __setitem__(self, name: str, value: T) -> None:
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **found(self._group)})

    def __len__(self) -> int:
        return len({**self._own, **found(self._group)})
