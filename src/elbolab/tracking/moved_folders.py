"""Where a tracking store expects the files of runs on this machine, and what mends it after the folder was moved."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import mlflow
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from elbolab.support import sqlite
from elbolab.support.errors import UserError

# MLflow's own folder for files, made where its first run begins; the store keeps it as an absolute path.
FILES = "mlruns"


def refuse_moved(uri: str) -> None:
    """Raise UserError where the files at an artifact address lay in a folder that is now elsewhere, or not there.

    Otherwise MLflow finds none, and makes the folder of then anew for what is written. A folder that nothing has been
    written to yet is no such case.
    """
    if not is_local_uri(uri):
        return
    path = Path(local_file_uri_to_path(uri))
    if path != Path(uri) and Path(uri).is_absolute():
        # MLflow decodes percent signs in a plain path, and so writes and finds files in another folder than it says.
        return
    root = next((folder for folder in (path, *path.parents) if folder.name == FILES), None)
    if root is None or path.exists():
        return
    # The number of an experiment is that of others in other projects too; the id of a run is not.
    is_new = root.parent.exists() and len(path.relative_to(root).parts) == 1
    for folder in () if is_new else _folders():
        if (folder / path.relative_to(root)).exists():
            inner = [part for part in (*reversed(path.parents), path) if part.is_relative_to(root)]
            lost = next(part for part in inner if not part.exists())
            now = folder / lost.relative_to(root)
            link = f"mkdir -p {quote(str(lost.parent))} && ln -sfn {quote(str(now))} {quote(str(lost))}"
            raise UserError(f"files of runs are expected in {path} and are in {now} now; move them back, or `{link}`")
    if not root.parent.exists():
        raise UserError(
            f"files of runs are expected in {path}, but there is no {root.parent}; bring it back, or begin another "
            "experiment here by MLFLOW_EXPERIMENT_NAME"
        )


def _folders() -> Iterator[Path]:
    """Where such files would be in a project that was moved: beside the store, and in the working folder."""
    if (store := sqlite.file_of(mlflow.get_tracking_uri())) is not None:
        yield store.parent / FILES
    yield Path(FILES).absolute()
