"""The records of a journal, a class a kind and a line of JSON a record, and the life of a run as they tell it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NotRequired, TypedDict

from elbolab.tracking.keys import FAILED, FINISHED, KILLED, RUNNING

VALUES, FILES = "values", "files"
"""The lanes of a journal, each sent in its own order: what is sent as values, and what as files."""


class NewRun(TypedDict):
    """The run to make: ``parent`` names a run or its journal, the experiment goes by its id or by its name."""

    name: str
    time: int
    tags: dict[str, str]
    parent: str | None
    experiment: NotRequired[str]
    experiment_id: NotRequired[str]


class KnownRun(TypedDict):
    """A run that the server has; ``attached`` where its status stays."""

    id: str
    attached: NotRequired[bool]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is said of a run, at ``time`` in milliseconds since 1970."""

    lane: ClassVar[str] = VALUES
    time: int = field(default_factory=lambda: int(time.time() * 1000))


@dataclass(frozen=True, kw_only=True)
class Begin(Record):
    """A run begins, or goes on: ``run`` in the first record only, ``status`` where the server may have an older one."""

    tags: dict[str, str]
    params: dict[str, str]
    run: NewRun | KnownRun | None = None
    status: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attach(Record):
    """Something is added to a run that is not under way."""

    run: KnownRun


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """Values of one step."""

    metrics: dict[str, float]
    step: int


@dataclass(frozen=True, kw_only=True)
class Tags(Record):
    """Tags; those that wait are sent after every file before them."""

    tags: dict[str, str]
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class End(Record):
    """A run ends with a ``status`` of MLflow, once its files are there."""

    status: str
    waits: bool = True


@dataclass(frozen=True, kw_only=True)
class Inputs(Record):
    """The data that a run is trained on, as MLflow describes a dataset."""

    lane: ClassVar[str] = FILES
    data: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class File(Record):
    """An artifact: the ``file`` within the journal's folder, and the artifact ``folder`` that it goes to."""

    lane: ClassVar[str] = FILES
    file: str
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Picture(File):
    """An image of one step, under the key ``image``."""

    image: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint(File):
    """A checkpoint that is logged as the run's model; ``example`` is uint8 (N, H, W, C), as lists."""

    example: list[Any]


# The first of these keys that a line has tells its kind.
_KINDS: dict[str, type[Record]] = {
    "example": Checkpoint,
    "image": Picture,
    "file": File,
    "data": Inputs,
    "metrics": Metrics,
    "params": Begin,
    "run": Attach,
    "tags": Tags,
    "status": End,
}


def encode(record: Record) -> bytes:
    """The line of a record."""
    said = {key: value for key, value in vars(record).items() if key not in ("run", "status") or value is not None}
    return json.dumps({"time": record.time, "lane": record.lane, **said}).encode() + b"\n"


def decode(line: bytes) -> Record:
    """The record of a line; raises ValueError where it is none."""
    try:
        said = json.loads(line)
        kind = next(kind for key, kind in _KINDS.items() if key in said)
        return kind(**{key: value for key, value in said.items() if key != "lane"})
    except (AttributeError, StopIteration, TypeError) as error:
        raise ValueError(f"{line[:80]!r} is no record of a journal") from error


NEW, ATTACHED = "new", "attached"
"""The stages of a journal beside the statuses of a run: nothing is said yet, or of a run whose status stays."""


@dataclass(frozen=True)
class Stage:
    """What may be said ``next``, what is said for a process that is ``lost``, and whether a training can go on.

    What can go on keeps its folder though all is sent; any other folder is removed then.
    """

    next: tuple[str, ...] = ()
    lost: str | None = None
    can_go_on: bool = False


LIFE = {
    NEW: Stage(next=(ATTACHED, RUNNING)),
    ATTACHED: Stage(),
    # Whoever goes on with a run that was killed without a word says RUNNING again.
    RUNNING: Stage(next=(RUNNING, FINISHED, FAILED, KILLED), lost=KILLED, can_go_on=True),
    FAILED: Stage(next=(RUNNING,), can_go_on=True),
    KILLED: Stage(next=(RUNNING,), can_go_on=True),
    FINISHED: Stage(next=(RUNNING,)),
}
"""The life of a run, by what was last said of it."""


def stage_of(records: Sequence[Record]) -> str:
    """The key in ``LIFE`` of what was last said of a run."""
    for record in reversed(records):
        if isinstance(record, End):
            return record.status
        if isinstance(record, Begin | Attach):
            return RUNNING if isinstance(record, Begin) else ATTACHED
    return NEW


def status_after(error: BaseException | None) -> str:
    """How a run ends that this error ended, or none."""
    if error is None:
        return FINISHED
    return KILLED if isinstance(error, KeyboardInterrupt | SystemExit) else FAILED


def end_of_lost(records: Sequence[Record]) -> End | None:
    """What is to be said of a run whose process is gone in the middle: its end, at its last sign of life."""
    status = LIFE[stage_of(records)].lost
    return None if status is None else End(status=status, time=records[-1].time)


def is_newest(end: End, status: str, ended: int | None) -> bool:
    """Whether an end holds on a server that has this ``status`` and end of the run: another call may have ended it."""
    return status == RUNNING or (ended or 0) <= end.time
