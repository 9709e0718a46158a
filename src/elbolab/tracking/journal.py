"""The journal of a run on local disk: what it is to say, in order, and what of that was sent."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from elbolab.support.atomic_files import replace, sync
from elbolab.support.errors import UserError

Record = dict[str, Any]
# What a folder's name ends with while it is being removed.
GONE = ".gone"
TRIES = 100


class Journal:
    """``records`` and the small ``state`` beside them, which one process at a time holds; both outlive it.

    ``is_new`` says that there were none. Raises UserError where another process holds the folder, or where it cannot be
    read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self._lock = FileLock(folder / "lock", thread_local=False)
        try:
            self._take()
            self.records, self.state = read_journal(folder), peek(folder)
            self._file = (folder / "journal.jsonl").open("ab", buffering=0)
            # A line that a crash has cut short was promised to nobody.
            self._file.truncate(sum(len(_line(record)) for record in self.records))
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
        """Make the folder and hold it, though other processes may remove the folder of all while it is empty."""
        for tries_left in reversed(range(TRIES)):
            try:
                (self.folder / "files").mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
                break
            except (FileNotFoundError, FileExistsError):
                if not tries_left:
                    raise

    def append(self, **record: Any) -> None:
        """Keep a record for good; raises UserError where the disk takes no more."""
        record = {"time": int(time.time() * 1000), **record}
        line, before = _line(record), os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            # What is written of it would spoil the next.
            self._file.truncate(before)
            raise self._full(error) from error
        with self.changed:
            self.records.append(record)
            self.changed.notify_all()

    @contextmanager
    def keeping(self, name: str) -> Iterator[Path]:
        """Where the body writes a file of this name, which is then kept for good; ``called`` is what a record calls it.

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

    def called(self, file: Path) -> str:
        """What a record calls a file that is kept."""
        return str(file.relative_to(self.folder))

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
        self._file.close()
        if remove:
            # Of a folder that is half removed nobody could tell what it was.
            gone = self.folder.with_name(self.folder.name + GONE)
            self.folder.rename(gone)
            _sweep(gone)
        self._lock.release()

    def _full(self, error: OSError) -> UserError:
        return UserError(f"{self.folder} cannot be written: {error}; free some space, and go on with what is there")


def journals(under: Path) -> list[Path]:
    """The folders of the journals in a folder, in the order in which their runs began.

    What a crash left of one that was being removed is swept away.
    """
    found = []
    for folder in under.glob("*"):
        if folder.suffix == GONE:
            _sweep(folder)
        else:
            found.append(folder)
    return sorted(found, key=_began)


def peek(folder: Path) -> dict[str, Any]:
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
        lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _unreadable(folder / "journal.jsonl", error) from error


def _began(folder: Path) -> int:
    """When the first record was written, 0 where that is not known."""
    with suppress(UserError):
        return next(iter(read_journal(folder)), {}).get("time", 0)
    return 0


def _sweep(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # Where others are left it stays.
    with suppress(OSError):
        folder.parent.rmdir()


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read: {error}; mend it, or move {file.parent} away")


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
