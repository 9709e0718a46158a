"""What encodes and decodes as a model does that was trained elsewhere: a user's class, pythae's, diffusers'."""

import json
from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from elbolab.support.errors import UserError, shown
from elbolab.support.user_code import failure, find

Recipe = dict[str, Any]
"""What an adapter is made of again, beside its weights, as JSON holds it."""


class Adapter(nn.Module):
    """The encoder and the decoder of a model that was trained elsewhere.

    A class of a user's own needs no base: `encode` and `decode` of a module are asked for, and `gives` and `load` where
    they are there. It is made without arguments, also where its run is loaded later; `load` reads its weights, once.
    """

    gives: Literal["images", "logits"] = "images"
    """What `decode` returns: images in [0, 1], or what a sigmoid makes them of."""

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] to mean and log-variance of q(z | x), each (B, D) or (B, ...)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latent vectors (B, D) to (B, C, H, W)."""


class PythaeAdapter(Adapter):
    """A model of pythae whose q(z | x) is a diagonal Gaussian: VAE, BetaVAE, IWAE, and VAMP with its own prior."""

    package = "pythae"
    known: ClassVar = ("VAE", "BetaVAE", "IWAE", "VAMP")

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        models = _package("pythae.models", self.package)
        config = dict(recipe["config"])
        config = getattr(models, config.pop("name"))(**config)
        parts = {part: _named(where)(config) for part, where in recipe["parts"].items()}
        self.model = getattr(models, recipe["name"])(config, **parts)

    @classmethod
    def read(cls, folder: Path, shape: tuple[int, int, int], trust: bool) -> tuple[Recipe, dict[str, Tensor]]:
        """The recipe and the weights of a folder that pythae saved; raises UserError where it is not one of ``known``.

        Nets of one's own lie there as pickles, which pythae executes: only with ``trust``.
        """
        models = _package("pythae.models", cls.package)
        config = json.loads((folder / "model_config.json").read_text())
        name = str(config.get("name", "")).removesuffix("Config")
        if name not in cls.known:
            raise UserError(
                f"{folder} has a {name or 'model'} of pythae; there are adapters of: {', '.join(cls.known)}"
            )
        if not (folder / "model.pt").is_file():
            raise UserError(f"{folder} has no model.pt, in which pythae keeps the weights; name the folder that has it")
        own = [part for part in ("encoder", "decoder") if config.get(f"uses_default_{part}") is not True]
        if (own or [*folder.glob("*.pkl")]) and not trust:
            raise UserError(
                f"{folder} has nets as pickles, which execute code when they are read; add --trust if you trust "
                "whoever made it, or adopt path/to/file.py:Adapter"
            )
        model = models.AutoModel.load_from_folder(str(folder))
        parts = {}
        for part in own:
            kind = type(getattr(model, part))
            parts[part] = f"{kind.__module__}:{kind.__qualname__}"
            if kind.__module__.partition(".")[0] != cls.package:
                raise UserError(
                    f"the {part} of {folder} is {kind.__qualname__}, a class that is kept as a pickle only; write "
                    "an adapter whose __init__ makes it, and adopt path/to/file.py:Adapter"
                )
        return {"kind": cls.package, "name": name, "config": config, "parts": parts}, _within_model(model)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model.encoder(x)
        return found.embedding, found.log_covariance

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decoder(z).reconstruction

    def mixture(self) -> tuple[Tensor, Tensor] | None:
        """Means and log-variances (K, D) of the equally likely components of its prior; None where that is N(0, I).

        Those of VAMP are its posteriors of K pseudo-inputs (Tomczak & Welling 2018, eq. 9).
        """
        if not hasattr(self.model, "pseudo_inputs"):
            return None
        inputs = self.model.pseudo_inputs(self.model.idle_input.to(next(self.parameters()).device))
        return self.encode(inputs.reshape(-1, *self.model.model_config.input_dim))


class DiffusersAdapter(Adapter):
    """An AutoencoderKL of diffusers, whose images are in [-1, 1] and whose latent vectors are not rescaled."""

    package = "diffusers"
    known: ClassVar = ("AutoencoderKL",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        diffusers = _package("diffusers", self.package)
        self.model = diffusers.AutoencoderKL.from_config(recipe["config"])
        # The default one has no second derivative on a CPU, which estimates of log p(x) need.
        processors = import_module("diffusers.models.attention_processor")
        self.model.set_attn_processor(processors.AttnProcessor())
        self._shape: tuple[int, ...] = tuple(recipe["latent_shape"])

    @classmethod
    def read(cls, folder: Path, shape: tuple[int, int, int], trust: bool) -> tuple[Recipe, dict[str, Tensor]]:
        """The recipe, for images of a shape (C, H, W), and the weights of a folder of ``save_pretrained``.

        Raises UserError where it is no such model.
        """
        config = json.loads((folder / "config.json").read_text())
        if config.get("_class_name") not in cls.known:
            name = config.get("_class_name", "model")
            raise UserError(f"{folder} has a {name} of diffusers; there are adapters of: {', '.join(cls.known)}")
        diffusers = _package("diffusers", cls.package)
        model = diffusers.AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        # Each of its blocks but the last halves the sides.
        unit = 2 ** (len(config["block_out_channels"]) - 1)
        latent_shape = [config["latent_channels"], shape[1] // unit, shape[2] // unit]
        recipe = {"kind": cls.package, "name": "AutoencoderKL", "config": config, "latent_shape": latent_shape}
        return recipe, _within_model(model)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.model.encode(2 * x - 1).latent_dist
        return q.mean, q.logvar

    def decode(self, z: Tensor) -> Tensor:
        return (self.model.decode(z.view(-1, *self._shape)).sample + 1) / 2


PACKAGES: dict[str, type[PythaeAdapter | DiffusersAdapter]] = {
    "pythae": PythaeAdapter,
    "diffusers": DiffusersAdapter,
}


def make_adapter(recipe: Recipe) -> nn.Module:
    """The adapter of a recipe; raises UserError where its package or file is not there, or its class is none."""
    if recipe["kind"] != "file":
        return PACKAGES[recipe["kind"]](recipe)
    kind = find(recipe["word"])
    try:
        adapter = kind()
    except (Exception, SystemExit) as error:
        raise UserError(f"{recipe['name']}() fails: {failure(error)}; it must be made without arguments") from error
    if not isinstance(adapter, nn.Module):
        raise UserError(f"{recipe['name']} is no torch.nn.Module; derive it from that")
    if (gives := getattr(adapter, "gives", "images")) not in ("images", "logits"):
        raise UserError(f"{recipe['name']}.gives is {shown(gives)}; it must be 'images' or 'logits'")
    if missing := [part for part in ("encode", "decode") if not callable(getattr(adapter, part, None))]:
        raise UserError(
            f"{recipe['name']} has no {' and no '.join(missing)}; define encode(x), which gives mean and log-variance, "
            "and decode(z), which gives images"
        )
    return adapter


def _within_model(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{key}": value for key, value in model.state_dict().items()}


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"a model of {package} needs that package ({error}); pip install 'elbolab[{package}]'"
        ) from error


def _named(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def encoded(adapter: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, D) that an adapter gives of images; raises UserError where it gives anything else."""
    name = type(adapter).__name__
    found = adapter.encode(x)
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
        raise UserError(f"{name}.encode gives {type(found).__name__}, not a mean and a log-variance")
    mean, log_var = (part.flatten(1) for part in found)
    if mean.shape != log_var.shape or len(mean) != len(x):
        shapes = " and ".join(str(tuple(part.shape)) for part in found)
        raise UserError(f"{name}.encode of images {tuple(x.shape)} gives {shapes}; both should be ({len(x)}, D)")
    return mean, log_var
