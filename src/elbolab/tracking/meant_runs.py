"""Which of some runs is meant: by its id or the beginning of it, its name, `latest` or `latest:MODEL`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from elbolab.support.errors import UserError
from elbolab.support.paths import public

ID = re.compile(r"[0-9a-f]{32}")
# Of fewer letters many a run's id begins.
BEGINNING = re.compile(r"[0-9a-f]{4,31}")
LATEST = re.compile(r"latest(?::(\w+))?")
LISTED = 5


@dataclass(frozen=True)
class Named:
    """What a run is asked for by: its ``id``, its ``name``, and the ``model`` that it trains or trained, if any."""

    id: str
    name: str
    model: str | None


def brief(value: str) -> str:
    """A parameter's value as a name has it: ids by their beginning, of an absolute path its last part."""
    return ID.sub(lambda run: run[0][:8], public(value))


def meant(asked: str, runs: Iterable[Named]) -> list[Named]:
    """Those of some runs, newest first, that ``asked`` may mean."""
    if (latest := LATEST.fullmatch(asked)) is not None:
        return list(islice((run for run in runs if run.model and latest[1] in (None, run.model)), 1))
    begins = ID.fullmatch(asked) or BEGINNING.fullmatch(asked)
    return [run for run in runs if (begins and run.id.startswith(asked)) or run.name == asked]


def one_of(asked: str, runs: list[Named]) -> Named:
    """The one run that ``asked`` may mean; raises UserError where there are several."""
    if len(runs) > 1:
        some = ", ".join(f"{run.id} ({run.name})" for run in runs[:LISTED])
        more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        raise UserError(f"{asked!r} may mean any of {len(runs)} runs: {some}{more}; name one by its id")
    return runs[0]
