"""The journal of a run on the local disk: its records in order, and how many of them are sent."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from elbolab.support.atomic_files import replace, sync
from elbolab.support.errors import UserError
from elbolab.tracking.records import LIFE, NEW, File, Record, decode, encode, stage_of

# What a folder's name ends with while it is being removed.
GONE = ".gone"
TRIES = 100


class Journal:
    """``records`` and the small ``state`` beside them, which one process at a time holds and which outlive it.

    ``state`` says what is sent: ``run_id`` of the run on the server, and by lane the number of records. ``is_new`` says
    that there were no records. Raises UserError where another process holds the folder, or where it cannot be read or
    written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self._held: list[Record] | None = None
        self._lock = FileLock(folder / "lock", thread_local=False)
        try:
            self._take()
            self.records, self.state = read_journal(folder), read_state(folder)
            self._file = (folder / "journal.jsonl").open("ab", buffering=0)
            # Nobody was told that a line which a crash has cut short is kept.
            self._file.truncate(sum(map(len, _lines(folder))))
            for names in (folder, folder.parent):
                sync(names)
        except Timeout:
            raise UserError(f"{folder} is in use by another process; wait for its end, or end it") from None
        except UserError:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise UserError(f"{folder} cannot be written: {error}; work in a folder that can be") from error
        self.is_new = not self.records

    def _take(self) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                (self.folder / "files").mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
                break
            except (FileNotFoundError, FileExistsError):
                # Other processes remove the folder of all while it is empty.
                if not tries_left:
                    raise

    def append(self, record: Record) -> None:
        """Write a record to the disk; raises UserError where the disk takes no more."""
        if self._held is not None:
            self._held.append(record)
        else:
            self._write([record])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write the records of the body at its end, all in one write; where it raises, none.

        Raises UserError where the disk takes no more.
        """
        self._held = held = []
        try:
            yield
        finally:
            self._held = None
        self._write(held)

    def _write(self, records: Sequence[Record]) -> None:
        before, after = stage_of(self.records), stage_of(records)
        assert after == NEW or after in LIFE[before], f"{after} cannot follow {before}"
        lines, size = b"".join(map(encode, records)), os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            # Else the next record would be written behind a part of this one.
            self._file.truncate(size)
            raise self._full(error) from error
        with self.changed:
            self.records.extend(records)
            self.changed.notify_all()

    @contextmanager
    def append_file(self, name: str, kind: type[File] = File, **fields: Any) -> Iterator[Path]:
        """Write a record of a ``kind`` with these ``fields`` and a file, which the body writes at the path it is given.

        Raises UserError where the disk takes no more.
        """
        own = self.folder / "files" / uuid4().hex / name
        try:
            own.parent.mkdir()
            yield own
            for path in (own, own.parent, own.parent.parent):
                sync(path)
        except OSError as error:
            raise self._full(error) from error
        self.append(kind(file=str(own.relative_to(self.folder)), **fields))

    def remove_file(self, file: str) -> None:
        """Remove a file, named by its path within the folder."""
        shutil.rmtree((self.folder / file).parent, ignore_errors=True)

    def update_state(self, **values: Any) -> None:
        """Change the state on the disk, at once or not at all."""
        part = self.folder / "state.json.part"
        part.write_text(json.dumps(self.state | values))
        replace(part, self.folder / "state.json")
        with self.changed:
            self.state |= values
            self.changed.notify_all()

    def close(self, remove: bool) -> None:
        """Release the folder, or ``remove`` it, and with the last one the folder of all."""
        self._file.close()
        if remove:
            # From a folder that is half removed nobody could tell what it was.
            gone = self.folder.with_name(self.folder.name + GONE)
            self.folder.rename(gone)
            _remove(gone)
        self._lock.release()

    def _full(self, error: OSError) -> UserError:
        return UserError(f"{self.folder} cannot be written: {error}; free some space, and go on with what is there")


def journals(under: Path) -> list[Path]:
    """The folders of the journals in a folder, in the order in which their runs began.

    What a crash left of one that was being removed is removed.
    """
    found = []
    for folder in under.glob("*"):
        if folder.suffix == GONE:
            _remove(folder)
        else:
            found.append(folder)
    return sorted(found, key=_began)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of the journal in a folder, whoever holds it; raises UserError where it cannot be read."""
    try:
        return json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(folder / "state.json", error) from error


def read_journal(folder: Path) -> list[Record]:
    """The records in a folder, without the line that a crash has cut short, if it has.

    Raises UserError where they cannot be read.
    """
    try:
        return [decode(line) for line in _lines(folder)]
    except (OSError, ValueError) as error:
        raise _unreadable(folder / "journal.jsonl", error) from error


def _began(folder: Path) -> int:
    """When the first record was written, 0 where that is not known."""
    with suppress(UserError):
        return next((record.time for record in read_journal(folder)), 0)
    return 0


def _lines(folder: Path) -> list[bytes]:
    try:
        lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.endswith(b"\n")]


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # Where there are other journals the folder of all stays.
    with suppress(OSError):
        folder.parent.rmdir()


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read: {error}; mend it, or move {file.parent} away")
