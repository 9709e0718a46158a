"""Packaging a trained model as an MLflow model, and loading it again."""

from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.artifacts
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import elbolab
from elbolab import serving
from elbolab.checkpoint import load_checkpoint
from elbolab.errors import UserError
from elbolab.models.latent import Model
from elbolab.records import address, model_of, prepare_store

REQUIREMENTS = ("torch", "safetensors", "pydantic", "platformdirs", "optuna", "numpy")


def log_model(run_id: str, checkpoint: Path, example: np.ndarray) -> None:
    """Log a checkpoint as the model ``model`` of a run: a pyfunc made from code, no pickle in it.

    ``example`` is what it predicts from, images uint8 (N, H, W, C).
    """
    # A schema of uint8 would have MLflow's server turn a pixel of 0.5 into 0 without a word; `serving` refuses it.
    images = TensorSpec(np.dtype(object), (-1,))
    params = {"op": next(iter(serving.operations(load_checkpoint(checkpoint)))), **serving.PARAMS}
    declared = [ParamSpec(key, "string" if key == "op" else "long", value) for key, value in params.items()]
    # What mlflow.pyfunc.log_model calls, for a run that no thread calls its own.
    MlflowModel.log(
        None,
        mlflow.pyfunc,
        name="model",
        run_id=run_id,
        python_model=serving.__file__,
        # MLflow would decode a percent sign in a plain path.
        artifacts={"checkpoint": checkpoint.absolute().as_uri()},
        code_paths=[str(Path(elbolab.__file__).parent)],
        pip_requirements=_pinned(),
        signature=ModelSignature(Schema([images]), params=ParamSchema(declared)),
        input_example=(example, params),
    )


def _pinned() -> list[str]:
    # A build's own label, as in torch 2.11.0+cpu, is on no package index.
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]


def load_model(source: str, device: str = "cpu") -> Model:
    """The trained module of a run id or a model URI (models:/name@alias), in evaluation mode, with its ``config``.

    Nothing of it is executed: of its files only the checkpoint is read. Raises UserError where the tracking server has
    no such model, or one without a checkpoint of elbolab.
    """
    prepare_store()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(source if ":/" in source else f"models:/{model_of(source)}"))
    except (MlflowException, OSError) as error:
        raise UserError(f"{source!r} has no trained model on {address()}") from error
    return load_checkpoint(next(folder.glob("artifacts/*.safetensors"), folder / "artifacts"), device)
