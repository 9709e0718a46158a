"""SQLite files that several processes share."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock
from sqlalchemy import create_engine, make_url, text

from elbolab.support.errors import UserError

PREFIX = "sqlite:///"


@contextmanager
def first_use(url: str) -> Iterator[None]:
    """Keep other processes out while the caller makes or migrates this database, then tune it.

    Afterwards writers do not block readers, and queries are planned by the size of the tables. Does nothing for a
    database that is not a SQLite file. Raises UserError where the file cannot be written.
    """
    if (path := file_of(url)) is None:
        yield
        return
    if not _can_be_written(path):
        raise UserError(f"the database {path} cannot be written; name one in a folder that exists and can be")
    if path.exists() and not _is_database(path):
        raise UserError(f"{path} is no SQLite database; move it away, or name another one")
    with FileLock(f"{path}.lock"):
        yield
        engine = create_engine(url, connect_args={"timeout": 60})
        with engine.connect() as connection:
            connection.execute(text("PRAGMA journal_mode=WAL"))
            # Without statistics a run's history is looked for among the values of all runs. The limit makes it
            # milliseconds for a store of any size.
            connection.execute(text("PRAGMA analysis_limit=1000"))
            connection.execute(text("ANALYZE"))
            connection.commit()
        engine.dispose()


def absolute(url: str) -> str:
    """The same database for a process in any folder."""
    if (path := file_of(url)) is None:
        return url
    return _address(url, path)


def _address(url: str, path: Path) -> str:
    return make_url(url).set(database=str(path)).render_as_string(hide_password=False)


def meant_by_caller(url: str, run_id: str) -> str:
    """The address of an MLflow store with this run, as the process means it that began this one in another folder.

    `mlflow run` hands a relative address down as it stands. One that is not relative, or is nowhere, is as it was.
    """
    path = Path(make_url(url).database or "") if url.startswith(PREFIX) else Path("/")
    for process in psutil.Process().parents() if not path.is_absolute() else ():
        with suppress(psutil.Error, OSError):
            if _has_run(there := Path(process.cwd()) / path, run_id):
                return _address(url, there)
    return url


def _has_run(path: Path, run_id: str) -> bool:
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return bool(connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone())
    return False


def file_of(url: str) -> Path | None:
    """The absolute path of a SQLite file; None of any other database."""
    # MLflow writes a space in its own URL as %20, and only SQLAlchemy knows what it makes of that.
    return Path(make_url(url).database or "").absolute() if url.startswith(PREFIX) else None


def _can_be_written(path: Path) -> bool:
    # What lies in a folder that may not be entered cannot even be asked about.
    if not os.access(path.parent, os.W_OK | os.X_OK) or not path.parent.is_dir():
        return False
    return not path.exists() or os.access(path, os.W_OK)


def _is_database(path: Path) -> bool:
    # SQLite itself must look: to close a file that is opened otherwise ends the locks that this process has on it.
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.DatabaseError as error:
        return path.is_file() and error.sqlite_errorcode != sqlite3.SQLITE_NOTADB
    return True
