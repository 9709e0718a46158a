"""A model as one file: safetensors for the weights, JSON in its header for the config. Nothing in it can execute."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elbolab.data.batches import DataSpec
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.support.atomic_files import replace
from elbolab.support.errors import UserError
from elbolab.support.random_streams import OwnGenerator
from elbolab.support.torch_settings import default_settings


def save_checkpoint(path: Path, model: Model, epoch: int, weights: dict[str, Tensor] | None = None) -> None:
    """Write the model, replacing ``path`` at once or not at all; raises UserError where it cannot be written.

    ``weights`` is its whole ``state_dict`` where that of this process is a part.
    """
    name = next(name for name, kind in MODELS.items() if type(model) is kind)
    config, spec = model.config.model_dump(mode="json"), asdict(model.spec)
    write(path, weights or model.state_dict(), {"model": name, "config": config, "spec": spec, "epoch": epoch})


@default_settings()
def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Model:
    """The model of a checkpoint, in evaluation mode; raises UserError where the file is none.

    Before memory is taken for the model that the header describes, it must be the one whose weights the file has.
    """
    weights, header = read(path)
    try:
        kind = MODELS[header["model"]]
        config, spec = kind.Config.parse(header["config"]), TypeAdapter(DataSpec).validate_python(header["spec"])
        with torch.device("meta"):
            described = {key: value.shape for key, value in kind(config, spec).state_dict().items()}
        if described != {key: value.shape for key, value in weights.items()}:
            raise UserError(f"its weights are not those of the {header['model']} that its header describes")
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a checkpoint of elbolab: {type(error).__name__}: {reason:.200}") from error
    with OwnGenerator():
        model = kind(config, spec)
    model.load_state_dict(weights)
    return model.to(device).eval()


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written; raises UserError where the file is none."""
    return read(path)[1]["epoch"]


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors of any shapes and JSON with their checksum; whenever the machine dies, ``path`` is old or new.

    Raises UserError where it cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(header)
    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part, {"elbolab": text, "sha256": _digest(text, tensors)})
        replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}; what was written before is as it was") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of a file of ``write``; raises UserError where it is none, torn or altered."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        text = metadata["elbolab"]
        header = json.loads(text)
    except (OSError, SafetensorError, LookupError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of elbolab: {type(error).__name__}: {error!s:.200}") from error
    # Files of before there were checksums have none.
    if metadata.get("sha256", digest := _digest(text, tensors)) != digest:
        raise UserError(f"{path} is not as it was written: its checksum differs")
    return tensors, header


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
