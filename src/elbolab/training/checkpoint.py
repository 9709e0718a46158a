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

from elbolab.config.version_0_1_0 import with_depth
from elbolab.data.batches import DataSpec
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.support.atomic_files import replace
from elbolab.support.errors import UserError
from elbolab.support.random_streams import OwnGenerator
from elbolab.support.torch_settings import default_settings
from elbolab.support.user_code import Source, Trust, failure, kept, load, refuse_untrusted


def save_checkpoint(path: Path, model: Model, epoch: int, weights: dict[str, Tensor] | None = None) -> None:
    """Write the model, replacing ``path`` at once or not at all; raises UserError where it cannot be written.

    ``weights`` is its whole ``state_dict`` where that of this process is a part.
    """
    header = {
        "model": MODELS.name_of(type(model)),
        "config": model.config.model_dump(mode="json"),
        "spec": asdict(model.spec),
        "epoch": epoch,
        "latent": isinstance(model, LatentModel),
        "requirements": model.requirements,
        "code": {field: source.as_json() for field, source in model.code.items()},
    }
    write(path, weights or model.state_dict(), header)


@default_settings()
def load_checkpoint(path: Path, device: str | torch.device = "cpu", trust: Trust = False) -> Model:
    """The model of a checkpoint, in evaluation mode; raises UserError where the file is none.

    Code of the user's that came with it is executed where it is that of ``trust``, or was in this process before; else
    UserError says so. Before memory is taken for the model that the header describes, it must be the one whose weights
    the file has.
    """
    weights, header = read(path)
    code = _code(path, header)
    # Of a model of a package that is installed here nothing else is executed.
    if (name := str(header.get("model"))) in MODELS:
        code.pop("model", None)
    for source in code.values():
        refuse_untrusted(source, trust)
    fields = given if isinstance(given := header.get("config"), dict) else {}
    with kept({str(fields.get(field, field)): source for field, source in code.items()}):
        try:
            kind = MODELS.checked(load(code["model"]), name) if "model" in code else MODELS[name]
            config = kind.Config.parse(with_depth(header["config"]))
            spec = TypeAdapter(DataSpec).validate_python(header["spec"])
            # Code that is trusted may want numbers of its weights, which there are none of on "meta".
            with torch.device("cpu" if code else "meta"), OwnGenerator():
                described = {key: value.shape for key, value in kind(config, spec).state_dict().items()}
            if described != {key: value.shape for key, value in weights.items()}:
                raise UserError(f"its weights are not those of the {header['model']} that its header describes")
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _none(path, error) from error
        except Exception as error:
            if not code:
                raise
            raise UserError(f"the code that came with {name} fails: {failure(error)}") from error
        with OwnGenerator():
            model = kind(config, spec)
        # What it was loaded from, and not what files say later.
        _ = model.code
    model.load_state_dict(weights)
    return model.to(device).eval()


def requirements_of(path: Path) -> tuple[str, ...]:
    """``Model.requirements`` of the model of a checkpoint."""
    return tuple(read(path)[1].get("requirements", ()))


def is_latent(path: Path) -> bool:
    """Whether the model of a checkpoint has latent variables; none of its code is executed."""
    header = read(path)[1]
    # Files of before models could be the user's own do not say it.
    return header.get("latent", header.get("model") != "cnn")


def _code(path: Path, header: dict[str, Any]) -> dict[str, Source]:
    try:
        return {field: Source.from_json(value) for field, value in header.get("code", {}).items()}
    except (AttributeError, ValueError) as error:
        raise _none(path, error) from error


def _none(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path} is not a checkpoint of elbolab: {type(error).__name__}: {reason:.200}")


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written; raises UserError where the file is none."""
    return read(path)[1]["epoch"]


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors of any shapes and JSON with their checksum; whenever the machine dies, ``path`` is old or new.

    Raises UserError where it cannot be written.
    """
    tensors = _apart({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    text = json.dumps(header)
    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part, {"elbolab": text, "sha256": _digest(text, tensors)})
        replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}; what was written before is as it was") from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, each in memory of its own, as safetensors wants them: weights of two names are kept twice."""
    seen = set[int]()
    found = {}
    for key, value in tensors.items():
        where = value.untyped_storage().data_ptr()
        found[key] = value.clone() if where in seen and value.numel() else value
        seen.add(where)
    return found


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
