"""Packaging a trained model as an MLflow model, and loading it again."""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import mlflow.artifacts
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.uri import is_local_uri

from elbolab.models.base import Model
from elbolab.models.cnn import CNN
from elbolab.models.latent import LatentModel
from elbolab.registry import pyfunc
from elbolab.support.errors import UserError, reason
from elbolab.support.user_code import Trust
from elbolab.tracking.artifacts import model_of
from elbolab.tracking.mlflow_reader import address, prepare_store
from elbolab.tracking.moved_folders import refuse_moved
from elbolab.tracking.run_names import find_run
from elbolab.training.checkpoint import is_latent, load_checkpoint, requirements_of

# What MLflow allows in no name of a model.
FORBIDDEN = str.maketrans({".": ",", **dict.fromkeys("/:%\"'", "-")})
REQUIREMENTS = ("torch", "safetensors", "pydantic", "numpy")


def log_model(run_id: str, checkpoint: Path, example: np.ndarray) -> None:
    """Log a checkpoint as the model of a run, of the run's name: a pyfunc made from code, no pickle in it.

    ``example`` is what it predicts from, images uint8 (N, H, W, C). An upload that was cut off is begun again in the
    same model, so that a run has one. Raises MlflowException where the server does not answer, and UserError where the
    checkpoint cannot be read.
    """
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    model = _model_begun(client, run)
    own = model.model_id
    if model.status == LoggedModelStatus.READY:
        return
    # A schema of uint8 would have MLflow's server turn a pixel of 0.5 into 0 without a word; `serving` refuses it.
    images = TensorSpec(np.dtype(object), (-1,))
    kind = LatentModel if is_latent(checkpoint) else CNN
    params = {"op": next(iter(pyfunc.OPERATIONS[kind])), **pyfunc.PARAMS}
    declared = [ParamSpec(key, "string" if isinstance(value, str) else "long", value) for key, value in params.items()]
    needed = (*REQUIREMENTS, *requirements_of(checkpoint))
    with TemporaryDirectory() as folder:
        # What mlflow.pyfunc.log_model does, which begins a new model whenever it is called.
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            mlflow_model=MlflowModel(model.artifact_location, run_id, model_id=own, model_uuid=own),
            python_model=pyfunc.__file__,
            # MLflow would decode a percent sign in a plain path.
            artifacts={"checkpoint": checkpoint.absolute().as_uri()},
            code_paths=[str(Path(__file__).parent.parent)],
            # A build's own label, as in torch 2.11.0+cpu, is on no package index.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in needed],
            signature=ModelSignature(Schema([images]), params=ParamSchema(declared)),
            input_example=(example, params),
        )
        client.log_model_artifacts(own, f"{folder}/model")
    client.finalize_logged_model(own, LoggedModelStatus.READY)


def _model_begun(client: mlflow.MlflowClient, run: Run) -> LoggedModel:
    """The one model of a run, begun now if it was not before, and named among what the run has put out."""
    own, experiment = f"source_run_id = '{run.info.run_id}'", run.info.experiment_id
    found: list[LoggedModel] = client.search_logged_models([experiment], own)
    if not found:
        made = client.create_logged_model(experiment, _name_of(run), run.info.run_id, resolve_tags(), run.data.params)
        # MLflow asks again where an answer is lost, and then there are two.
        found = client.search_logged_models([experiment], own) or [made]
    named = [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]
    model, *twins = sorted(found, key=lambda model: model.model_id not in named)
    for twin in twins:
        if twin.status == LoggedModelStatus.PENDING:
            client.delete_logged_model(twin.model_id)
    if model.model_id not in named:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def _name_of(run: Run) -> str:
    return (run.info.run_name or "model").translate(FORBIDDEN)


def load_model(source: str, device: str = "cpu", trust: Trust = False) -> Model:
    """The trained module of a run that ``find_run`` finds, or of a model URI (models:/name@alias), in evaluation mode.

    Of its files only the checkpoint is read. What that has of the user's own code is executed where it was in this
    process before, or is that of ``trust``: True, or the file or class that it should equal. Raises UserError where it
    is not, where the tracking server has no such model, or one without a checkpoint of elbolab, or where its folder was
    moved.
    """
    prepare_store()
    # MLflow never removes the folder that it downloads into by itself.
    with TemporaryDirectory(prefix="elbolab-") as copy:
        try:
            model = source if ":/" in source else f"models:/{model_of(find_run(source).id)}"
            own = str(ModelsArtifactRepository.get_underlying_uri(model))
            refuse_moved(own)
            where = f"{own}/artifacts"
            names = [Path(item.path).name for item in mlflow.artifacts.list_artifacts(where)]
            uri = f"{where}/{next((name for name in names if name.endswith('.safetensors')), 'checkpoint')}"
            local = mlflow.artifacts.download_artifacts(uri, dst_path=None if is_local_uri(uri) else copy)
        except (MlflowException, OSError) as error:
            raise UserError(f"{source!r} has no trained model on {address()} ({reason(error)})") from error
        return load_checkpoint(Path(local), device, trust)
