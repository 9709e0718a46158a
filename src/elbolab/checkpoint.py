"""A model as one file: safetensors for the weights, JSON in its header for the config. Nothing in it can execute."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from elbolab import distributed
from elbolab.data import DataSpec
from elbolab.errors import UserError
from elbolab.models import MODELS, Model


def save_checkpoint(path: Path, model: Model, epoch: int, score: float) -> None:
    """Write the model, replacing ``path`` at once or not at all; of several processes the first writes the whole."""
    state = model.state_dict()
    for key, rows in model.sharded.items():
        state[key] = distributed.assemble(state[key], distributed.owners(torch.arange(rows), rows))
    if distributed.rank():
        return
    name = next(name for name, kind in MODELS.items() if type(model) is kind)
    header = {
        "model": name,
        "config": model.config.model_dump(mode="json"),
        "spec": asdict(model.spec),
        "epoch": epoch,
        "score": score,
    }
    part = path.with_name(path.name + ".part")
    save_file({key: value.contiguous() for key, value in state.items()}, part, {"elbolab": json.dumps(header)})
    os.replace(part, path)


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Model:
    """The model of a checkpoint, in evaluation mode; raises UserError where the file is none.

    Before memory is taken for the model that the header describes, it must be the one whose weights the file has.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["elbolab"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        kind = MODELS[header["model"]]
        config, spec = kind.Config.parse(header["config"]), TypeAdapter(DataSpec).validate_python(header["spec"])
        with torch.device("meta"):
            described = {key: value.shape for key, value in kind(config, spec).state_dict().items()}
        if described != {key: value.shape for key, value in weights.items()}:
            raise UserError(f"its weights are not those of the {header['model']} that its header describes")
    except (ArithmeticError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a checkpoint of elbolab: {type(error).__name__}: {reason:.200}") from error
    model = kind(config, spec)
    model.load_state_dict(weights)
    return model.to(device).eval()
