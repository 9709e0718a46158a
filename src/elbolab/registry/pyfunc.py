"""The model as MLflow serves it: images and an operation in, arrays out; a request it cannot answer gets one line."""

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from torch import Tensor

from elbolab.config.limits import LARGEST_INT
from elbolab.config.schema import LikelihoodConfig
from elbolab.data.batches import Batch
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.models.base import Model
from elbolab.models.cnn import CNN
from elbolab.models.latent import LatentModel
from elbolab.support.errors import shown
from elbolab.support.torch_settings import default_settings
from elbolab.training.checkpoint import load_checkpoint

# What keeps an answer within the minute that MLflow's server gives it.
MOST_IMAGES = 500
MOST_DECODES = 200_000
DECODES_A_STEP = 3
# What an image takes at least of an estimate that is to meet a tolerance.
AUTO_DECODES = 8_000
METHODS = get_args(LikelihoodConfig.model_fields["method"].annotation)

Arrays = np.ndarray | dict[str, np.ndarray]


class RefusedError(MlflowException):
    """A request that the model cannot answer; over HTTP status 400."""

    def __init__(self, line: str) -> None:
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)
        self._line = line

    def serialize_as_json(self) -> str:
        # The server has put all of the images before the line.
        self.message = self._line
        return super().serialize_as_json()


def _classify(model: Any, batch: Batch, params: dict[str, Any], generator: torch.Generator) -> Arrays:
    return model.logits(batch.x).softmax(-1).numpy()


def _reconstruct(model: Any, batch: Batch, params: dict[str, Any], generator: torch.Generator) -> Arrays:
    _decodes_left(model, batch)
    return _images(model.reconstruct(model.infer(batch, generator)))


def _encode(model: Any, batch: Batch, params: dict[str, Any], generator: torch.Generator) -> Arrays:
    _decodes_left(model, batch)
    return {name: value.numpy() for name, value in model.infer(batch, generator).parameters.items()}


def _sample(model: Any, batch: Batch, params: dict[str, Any], generator: torch.Generator) -> Arrays:
    return _images(model.sample(_whole(params, "n", 1, MOST_IMAGES, "samples a request"), params["seed"]))


def _log_px(model: Any, batch: Batch, params: dict[str, Any], generator: torch.Generator) -> Arrays:
    most = max(2, _decodes_left(model, batch) // len(batch))
    samples = _whole(params, "samples", 2, most, f"for the {len(batch)} images of this request")
    if (method := params["method"]) not in METHODS:
        raise RefusedError(f"method={shown(method)} must be one of {', '.join(METHODS)}")
    if method == "auto" and most < AUTO_DECODES and len(batch) > 1 and model.exact_log_px(batch.x) is None:
        raise RefusedError(
            f"images must be at most {max(1, MOST_DECODES // AUTO_DECODES)} a request of method='auto', but theirs are "
            f"{len(batch)}; send fewer, or take method='importance'"
        )
    budget = min(LikelihoodConfig().budget, max(1, most // DECODES_A_STEP))
    config = LikelihoodConfig(samples=samples, method=method, budget=budget)
    estimate = estimate_log_px(model, batch.x, model.infer(batch, generator), config, generator)
    found = {key: getattr(estimate, key).numpy() for key in ("log_px", "std_err", "ess", "unreliable")}
    return {key: values for key, values in found.items() if not np.isnan(values).any()}


def _decodes_left(model: Any, batch: Batch) -> int:
    """What inferring the posteriors of a request leaves of ``MOST_DECODES``; a single image may cost more."""
    an_image = DECODES_A_STEP * model.steps_to_infer
    left = MOST_DECODES - an_image * len(batch)
    if left < 0 and len(batch) > 1:
        raise RefusedError(
            f"images must be at most {max(1, MOST_DECODES // an_image)} a request, since the posterior of each takes "
            f"{model.steps_to_infer} gradient steps, but theirs are {len(batch)}"
        )
    return left


def _whole(params: dict[str, Any], name: str, least: int, most: int, of: str) -> int:
    value = params[name]
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        raise RefusedError(f"{name}={shown(value)} must be from {least} to {most} {of}, as a whole number")
    return int(value)


Operation = Callable[[Any, Batch, dict[str, Any], torch.Generator], Arrays]
OPERATIONS: dict[type[Model], dict[str, Operation]] = {
    CNN: {"classify": _classify},
    LatentModel: {"reconstruct": _reconstruct, "encode": _encode, "sample": _sample, "log_px": _log_px},
}
PARAMS = {"n": 16, "samples": 1000, "method": METHODS[0], "seed": 0}


def operations(model: Model) -> dict[str, Operation]:
    """What a model does by the value of the parameter ``op``, its default first."""
    return next(known for kind, known in OPERATIONS.items() if isinstance(model, kind))


class Served(PythonModel):
    """``predict(images, params={"op": ...})`` with images uint8 (N, H, W, C); N is at most ``MOST_IMAGES``.

    Where a posterior takes gradient steps, N is less: each is counted as ``DECODES_A_STEP`` of ``MOST_DECODES``.

    ==================  ===============================================================================================
    op                  gives
    ==================  ===============================================================================================
    reconstruct         expected images (N, H, W, C) in [0, 1]
    encode              q(z | x) by the model's declared inference: {"mean": (N, D), "log_var": (N, D)},
                        or of a full covariance {"mean": (N, D), "scale_tril": (N, D, D)}; of two layers moments;
                        of a flow "mean", "location", "scale_tril" and "couplings"
    sample              expected images (n, H, W, C) at ``n`` draws from the prior; the images given are not looked at
    log_px              {"log_px": (N,), "std_err": (N,), "ess": (N,), "unreliable": (N,)} in nats, by ``method`` auto
                        or importance, with ``samples`` importance samples; no ess where log p(x) is exact
    classify            class probabilities (N, classes), the one operation of a cnn
    ==================  ===============================================================================================

    ``seed`` seeds whatever is random. Raises RefusedError with one line for anything else.
    """

    def load_context(self, context: Any) -> None:
        # MLflow executes this file, which came with the model too.
        self.model = load_checkpoint(Path(context.artifacts["checkpoint"]), trust=True)

    @default_settings()
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Arrays:
        known = operations(self.model)
        if not isinstance(params, dict | NoneType):
            raise RefusedError(f"params={shown(params)} must be a dictionary of {', '.join(['op', *PARAMS])}")
        given = {"op": next(iter(known)), **PARAMS, **(params or {})}
        if not isinstance(op := given["op"], str) or op not in known:
            raise RefusedError(f"op={shown(op)} must be one of {', '.join(known)}")
        x = _pixels(model_input, self.model.spec.shape)
        given["seed"] = _whole(given, "seed", 0, LARGEST_INT, "as seed")
        generator = torch.Generator().manual_seed(given["seed"])
        nothing = torch.zeros(len(x), dtype=torch.int64)
        batch = self.model.observe(Batch(x, nothing, nothing, "new", ""), generator)
        with torch.no_grad():
            return known[op](self.model, batch, given, generator)


def _pixels(images: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Images (N, H, W, C) of whole numbers as pixels (N, C, H, W) in [0, 1]."""
    channels, height, width = shape
    if not isinstance(images, np.ndarray):
        raise RefusedError(f"images must be one array, but theirs is {shown(type(images))}")
    if images.shape[1:] != (height, width, channels) or not 0 < len(images) <= MOST_IMAGES:
        wanted = f"(N, {height}, {width}, {channels}) with N from 1 to {MOST_IMAGES}"
        raise RefusedError(f"images must be of shape {wanted}, but theirs is {images.shape}")
    # JSON comes as Python's own numbers.
    whole = images.dtype.kind in "iu" or (images.dtype == object and all(type(value) is int for value in images.flat))
    if not whole or images.min() < 0 or images.max() > 255:
        raise RefusedError("pixels must be whole numbers from 0 to 255; multiply those of a range [0, 1] by 255")
    x = torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2)
    # In the layout of training: another one rounds differently.
    return x.clone(memory_format=torch.contiguous_format).float() / 255


def _images(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


set_model(Served())
