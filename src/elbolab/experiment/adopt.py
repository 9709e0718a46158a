"""Adopt a model that was trained elsewhere: a run of it, to be evaluated, compared, explored and promoted."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.config.click_options import command_line
from elbolab.data.batches import Data
from elbolab.experiment.loading import choose_device, data_tags, load_for
from elbolab.models import MODELS, params_of
from elbolab.models.adapters import PACKAGES, Recipe, encoded, make_adapter
from elbolab.models.adopted import SAID, AdoptConfig, Adopted, AdoptedConfig
from elbolab.models.soundness import refuse_unsound
from elbolab.registry.packaging import log_model
from elbolab.support.errors import UserError
from elbolab.support.random_streams import own_stream
from elbolab.support.torch_settings import default_settings
from elbolab.support.user_code import Source, failure, is_word, kept, of_class, source_of
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import ADOPTED, ORIGIN_DIGEST
from elbolab.training.backend import Backend
from elbolab.training.checkpoint import save_checkpoint
from elbolab.training.pictures import take_pictures

# Which file of a folder says whose it is.
SAVED_BY = {"model_config.json": "pythae", "config.json": "diffusers"}
NO_LIKELIHOOD = (
    "an AutoencoderKL is trained by absolute, perceptual and adversarial losses and a KL term of weight 1e-6 (Rombach "
    "et al. 2022), by no likelihood: its log p(x) is that of the likelihood declared here and of a prior N(0, I), "
    "which its posteriors hardly follow"
)


@own_stream()
@default_settings()
def adopt(source: str | Path | nn.Module | type[nn.Module], trust: bool = False, **fields: Any) -> str:
    """Make a run of a model that was trained elsewhere, with its origin and digest as tags; returns the run's id.

    ``source`` is a folder that pythae or diffusers saved, path/to/file.py:Adapter, or an adapter's class or instance
    (``elbolab.models.adapters.Adapter`` says what is asked of it). ``fields`` are those of AdoptConfig: the dataset and
    the likelihood under which it is evaluated. Pickles of a folder are executed with ``trust`` only. Raises UserError
    where the model cannot be read, or does not take and give images of the dataset.
    """
    said = AdoptConfig.parse(fields).model_dump(exclude_none=True)
    if (name := said.get("name")) in MODELS:
        raise UserError(f"name={name!r} is the name of a model of elbolab's own; take another")
    base = AdoptedConfig.parse(said)
    data = load_for(base, device := choose_device(base.device))
    recipe, weights, code = _read(source, data.spec.shape, trust)
    word = recipe.get("word")
    with kept({} if word is None or code is None else {word: code}):
        model = _made(base.model_copy(update=_of_recipe(recipe, said, source)), weights, data)
        model.to(device).eval()
        refuse_unsound(model, data)
        return _tracked(model, data, recipe)


def _of_recipe(recipe: Recipe, said: dict[str, Any], source: Any) -> dict[str, Any]:
    origin = recipe["word"] if "word" in recipe else "/".join(Path(source).expanduser().absolute().parts[-2:])
    return {"name": said.get("name", recipe["name"]), "origin": origin, "recipe": json.dumps(recipe)}


def _made(config: AdoptedConfig, weights: dict[str, Tensor], data: Data) -> Adopted:
    """The model, of as many latent dimensions as its encoder gives."""
    adapter: Any = make_adapter(json.loads(config.recipe)).eval()
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config.origin}, made anew, does not take its own weights: {reason:.200}") from error
    x = data.train.batch(torch.arange(1)).x.cpu()
    with torch.no_grad():
        try:
            latent_dim = encoded(adapter, x)[0].shape[1]
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{config.origin} does not encode images {tuple(x.shape[1:])} of {data.name}: {failure(error)}"
            ) from error
        mixture = adapter.mixture() if hasattr(adapter, "mixture") else None
    more: dict[str, Any] = {"latent_dim": latent_dim}
    more |= {} if mixture is None else {"prior": "mixture", "prior_components": len(mixture[0])}
    model = Adopted(AdoptedConfig.parse({**config.model_dump(), **more}), data.spec)
    model.adapter.load_state_dict(weights)
    if mixture is not None:
        means, log_vars = mixture
        model.prior.load_state_dict({"logits": torch.zeros(len(means)), "means": means, "log_vars": log_vars})
    return model


def _read(source: Any, shape: tuple[int, int, int], trust: bool) -> tuple[Recipe, dict[str, Tensor], Source | None]:
    """The recipe, the weights and the code of what is adopted for images of a shape (C, H, W)."""
    if isinstance(source, nn.Module | type):
        kind = source if isinstance(source, type) else type(source)
        code = of_class(kind)
        recipe = {"kind": "file", "name": kind.__name__, "word": str(code)}
        if not isinstance(source, type):
            return recipe, source.state_dict(), code
        with kept({str(code): code}):
            return recipe, _weights(recipe), code
    if isinstance(source, str) and is_word(source):
        recipe = {"kind": "file", "name": source.rpartition(":")[2], "word": source}
        return recipe, _weights(recipe), source_of(source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"{source} is no folder and no path/to/file.py:Adapter; name what is to be adopted")
    found = next((package for file, package in SAVED_BY.items() if (folder / file).is_file()), None)
    if found is None:
        below = next((file.parent for name in SAVED_BY for file in sorted(folder.rglob(name))), None)
        there = "" if below is None else f"; there is one in {folder}/{below.relative_to(folder)}"
        raise UserError(f"{folder} has neither of {', '.join(SAVED_BY)}, as pythae and diffusers save a model{there}")
    try:
        return *PACKAGES[found].read(folder, shape, trust), None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder} cannot be read as a model of {found}: {failure(error)}") from error


def _weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights that an adapter's own ``load`` reads, or that it is made with."""
    adapter: Any = make_adapter(recipe)
    if callable(load := getattr(adapter, "load", None)):
        try:
            load()
        except (Exception, SystemExit) as error:
            raise UserError(f"{recipe['name']}.load() fails: {failure(error)}") from error
    return adapter.state_dict()


def _tracked(model: Adopted, data: Data, recipe: Recipe) -> str:
    config, package = model.config, recipe["kind"]
    digest = hashlib.sha256()
    for key, value in sorted(model.adapter.state_dict().items()):
        # Numpy has no bfloat16.
        digest.update(key.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    own = {
        **data_tags(data),
        **model.axes,
        "observation_model": model.observation_model,
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        ADOPTED: config.origin if package == "file" else f"{package} {version(package)}: {config.origin}",
        ORIGIN_DIGEST: digest.hexdigest()[:12],
        "mlflow.note.content": _description(model, package),
    }
    params = params_of(type(model), config)
    with tracking.start_run("train", f"{config.name} adopted", params, own, package=log_model) as track:
        track.log_code(model.code)
        track.log_value(config.model_dump(mode="json"), "config.json")
        track.log_data(data)
        track.log_pictures(take_pictures(model, data, Backend()), 0)
        checkpoint = track.folder / "adopted.safetensors"
        save_checkpoint(checkpoint, model, 0)
        track.log_artifact(checkpoint, "checkpoints")
        track.log_model(checkpoint, data.val.images[:2].permute(0, 2, 3, 1).cpu().numpy())
    if package == "diffusers":
        print(f"elbolab: {NO_LIKELIHOOD}", file=sys.stderr)
    return track.id


def _description(model: Adopted, package: str) -> str:
    config = model.config
    usual = AdoptConfig().params()
    said = {name: value for name, value in config.params().items() if name in SAID and value != usual.get(name)}
    fields = {"name": config.name, **said}
    note = f"\n\n{NO_LIKELIHOOD[:1].upper()}{NO_LIKELIHOOD[1:]}." if package == "diffusers" else ""
    command = command_line("adopt", config.origin, **fields)
    return f"A model that was trained elsewhere, adopted from {config.origin}.{note}\n\n    {command}"
