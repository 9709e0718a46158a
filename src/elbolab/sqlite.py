"""SQLite files that several processes share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from sqlalchemy import create_engine, text

from elbolab.errors import UserError

PREFIX = "sqlite:///"


@contextmanager
def first_use(url: str) -> Iterator[None]:
    """Keep other processes out while the caller makes or migrates this database, then tune it.

    Afterwards writers do not block readers, and queries are planned by the size of the tables. Does nothing for a
    database that is not a SQLite file. Raises UserError where the file cannot be written.
    """
    if not url.startswith(PREFIX):
        yield
        return
    path = Path(url.removeprefix(PREFIX))
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"the database {path} cannot be written; name one in a folder that exists and can be")
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
    return PREFIX + str(Path(url.removeprefix(PREFIX)).absolute()) if url.startswith(PREFIX) else url
