"""Reading what a run has left beside its values: artifacts, pictures by step, and its model."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from zipfile import BadZipFile

import mlflow
import mlflow.artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.uri import is_local_uri, validate_path_is_safe

from elbolab.support.errors import UserError, reason
from elbolab.tracking.mlflow_reader import ARTIFACT_URIS, address, get_run
from elbolab.tracking.moved_folders import refuse_moved

T = TypeVar("T")


class LostError(UserError):
    """A file that a run had is not there any more, or cannot be read."""


def model_of(run_id: str) -> str:
    """Id of the model that a run has logged; raises UserError where it has none that is whole."""
    # As `runs:/ID/model` it would be looked for among the run's own artifacts first, which a server of MLflow 3.1
    # answers with an error that is tried again for four minutes.
    for model in models_of(run_id):
        return model
    raise UserError(f"run {run_id} has no trained model on {address()}: it logged none, or that was deleted")


def models_of(run_id: str) -> list[str]:
    """Ids of the models that a run has logged and that are whole and there."""
    client = mlflow.MlflowClient()
    outputs = client.get_run(run_id).outputs
    ids = [output.model_id for output in (outputs.model_outputs if outputs else [])]
    return [one for one in ids if _is_whole(client, one)]


def _is_whole(client: mlflow.MlflowClient, model_id: str) -> bool:
    try:
        return client.get_logged_model(model_id).status == LoggedModelStatus.READY
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise


def list_artifacts(run_id: str, path: str = "") -> list[str]:
    """Paths of the artifacts directly under ``path``; raises UserError where one would lead out of the run's folder,
    or where that was moved.
    """
    refuse_moved(_uri(run_id))
    try:
        return [item.path for item in mlflow.MlflowClient().list_artifacts(run_id, path or None)]
    except MlflowException as error:
        raise UserError(f"the artifacts of run {run_id} cannot be listed on {address()}: {error.message}") from error


def read(run_id: str, path: str, reader: Callable[[Path], T]) -> T:
    """What ``reader`` makes of an artifact; raises UserError where the run has none of that path in its folder, and
    LostError where it has one that cannot be read.
    """
    # MLflow never removes the folder that it downloads into by itself.
    with TemporaryDirectory(prefix="elbolab-") as folder:
        try:
            # What is put behind an address is not looked at by MLflow.
            validate_path_is_safe(path)
            refuse_moved(own := _uri(run_id))
            uri = f"{own}/{path}"
            # By its address, since MLflow would ask for the run twice more and copy a file that is on this machine.
            file = Path(mlflow.artifacts.download_artifacts(uri, dst_path=None if is_local_uri(uri) else folder))
        except (MlflowException, OSError) as error:
            raise UserError(f"run {run_id} has no artifact {path!r} on {address()} ({reason(error)})") from error
        try:
            return reader(file)
        except (BadZipFile, EOFError, LookupError, OSError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise LostError(f"artifact {path!r} of run {run_id} cannot be read: {why:.200}; make it anew") from error


def _uri(run_id: str) -> str:
    """Where the artifacts of a run are."""
    if run_id not in ARTIFACT_URIS:
        get_run(run_id)
    return ARTIFACT_URIS[run_id]


def step_images(run_id: str, key: str) -> dict[int, bytes]:
    """The PNGs that were logged under ``key``, by step."""
    found = {}
    for path in list_artifacts(run_id, "images"):
        # MLflow's names read key%step%5%timestamp%1700000000000%uuid.png.
        parts = Path(path).name.replace("+", "%").split("%")
        if parts[:2] == [key, "step"] and path.endswith(".png"):
            found[int(parts[2])] = read(run_id, path, Path.read_bytes)
    return dict(sorted(found.items()))
