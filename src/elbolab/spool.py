"""The journal of a run on local disk: what it is to say, in order, and what of that was sent."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from elbolab.durable import replace, sync
from elbolab.errors import UserError

Record = dict[str, Any]


class Spool:
    """``records`` and the small ``state`` beside them, which one process at a time holds; both outlive it.

    Raises UserError where another process holds the folder, or where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self._lock = FileLock(folder / "lock", thread_local=False)
        try:
            (folder / "files").mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self.records = read_journal(folder)
            self._journal = (folder / "journal.jsonl").open("ab", buffering=0)
            # A line that a crash has cut short was promised to nobody.
            self._journal.truncate(sum(len(_line(record)) for record in self.records))
        except Timeout:
            raise UserError(f"{folder} is in use by another process; wait for its end, or end it") from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error}; work in a folder that can be") from error
        self.state = peek(folder)

    def append(self, **record: Any) -> None:
        """Keep a record for good; raises UserError where the disk takes no more."""
        line, before = _line(record), os.fstat(self._journal.fileno()).st_size
        try:
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal.fileno())
        except OSError as error:
            # What is written of it would spoil the next.
            self._journal.truncate(before)
            raise self._full(error) from error
        with self.changed:
            self.records.append(record)
            self.changed.notify_all()

    def keep(self, file: Path) -> str:
        """Keep a copy of a file for good; returns what a record calls it."""
        own = self.folder / "files" / uuid4().hex / file.name
        try:
            own.parent.mkdir()
            shutil.copyfile(file, own)
            sync(own)
        except OSError as error:
            raise self._full(error) from error
        return str(own.relative_to(self.folder))

    def drop(self, file: str) -> None:
        """The file is not needed any more."""
        shutil.rmtree((self.folder / file).parent, ignore_errors=True)

    def remember(self, **values: Any) -> None:
        """Change the state, at once or not at all."""
        part = self.folder / "state.json.part"
        part.write_text(json.dumps(self.state | values))
        replace(part, self.folder / "state.json")
        with self.changed:
            self.state |= values
            self.changed.notify_all()

    def close(self, remove: bool) -> None:
        """Let others have the folder, or be rid of it and of the folder of all where it is the last."""
        self._journal.close()
        if remove:
            shutil.rmtree(self.folder)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()
        self._lock.release()

    def _full(self, error: OSError) -> UserError:
        return UserError(f"{self.folder} cannot be written: {error}; free some space, and go on with what is there")


def peek(folder: Path) -> dict[str, Any]:
    """The state of the spool in a folder, whoever holds it."""
    try:
        return json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return {}


def read_journal(folder: Path) -> list[Record]:
    """The records in a folder, without the line that a crash has cut short, if it has."""
    journal = folder / "journal.jsonl"
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
