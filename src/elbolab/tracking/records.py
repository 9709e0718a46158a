"""The records of a journal, a class a kind and a line of JSON a record, and the life of a run as they tell it."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
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
    """A run that the server has; ``attached`` where its status stays.

    ``otherwise`` is the run to make where something else is written to that one already.
    """

    id: str
    attached: NotRequired[bool]
    otherwise: NotRequired[NewRun]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing that is written of a run, at ``time`` in milliseconds since 1970."""

    lane: ClassVar[str] = VALUES
    time: int = field(default_factory=lambda: int(time.time() * 1000))


@dataclass(frozen=True, kw_only=True)
class Begin(Record):
    """A run begins or is resumed: ``run`` in the first record only, ``status`` where the run was there before."""

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


# No two take the same fields, which tell the kind of a line.
KINDS: tuple[type[Record], ...] = (Begin, Attach, Metrics, Tags, End, Inputs, File, Picture, Checkpoint)


def encode(record: Record) -> bytes:
    """The line of a record."""
    fields = {key: value for key, value in vars(record).items() if key not in ("run", "status") or value is not None}
    return json.dumps({"time": record.time, "lane": record.lane, **fields}).encode() + b"\n"


def decode(line: bytes) -> Record:
    """The record of a line; raises ValueError where it is none."""
    if isinstance(fields := json.loads(line), dict):
        fields.pop("lane", None)
        for kind in KINDS:
            with suppress(TypeError):
                return kind(**fields)
    raise ValueError(f"{line[:80]!r} is no record of a journal")


NEW, ATTACHED = "new", "attached"
"""The stages beside the statuses of MLflow: a journal without records, and one of a run whose status stays."""


LIFE = {
    NEW: (ATTACHED, RUNNING),
    ATTACHED: (),
    # A process that is killed writes no end, and the one that resumes the run begins it again.
    RUNNING: (RUNNING, FINISHED, FAILED, KILLED),
    FAILED: (RUNNING,),
    KILLED: (RUNNING,),
    FINISHED: (RUNNING,),
}
"""The stages of a run, each a status of MLflow or one of the two above, and those that may follow each."""
UNDONE = (RUNNING, FAILED, KILLED)
"""The stages at which a training can be resumed: its folder is kept even where all is sent."""


def stage_of(records: Sequence[Record]) -> str:
    """The stage of a run, a key of ``LIFE``, by the last of its records that changes it."""
    for record in reversed(records):
        if isinstance(record, End):
            return record.status
        if isinstance(record, Begin | Attach):
            return RUNNING if isinstance(record, Begin) else ATTACHED
    return NEW


def status_after(error: BaseException) -> str:
    """The status of a run that ended by this error."""
    return KILLED if isinstance(error, KeyboardInterrupt | SystemExit) else FAILED


def end_of_lost(records: Sequence[Record]) -> End | None:
    """The end of a run whose process is gone and wrote none, at the time of the last record; None where it has one."""
    return End(status=KILLED, time=records[-1].time) if stage_of(records) == RUNNING else None


def is_newest(end: End, status: str, ended: int | None) -> bool:
    """Whether an end is newer than the run's ``status`` on the server, which another call may have ``ended`` since."""
    return status == RUNNING or (ended or 0) <= end.time
