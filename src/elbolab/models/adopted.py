"""A model that was trained elsewhere, behind an adapter: evaluated as any other, and trained no further."""

import json
from contextlib import suppress
from typing import Any

import torch
from pydantic import Field, create_model, field_validator
from torch import Tensor, nn

from elbolab.config.base import Settings
from elbolab.config.schema import DATA_FIELDS
from elbolab.data.batches import Batch, DataSpec
from elbolab.models.adapters import encoded, make_adapter
from elbolab.models.latent import LatentConfig, LatentModel
from elbolab.models.likelihoods import LIKELIHOODS
from elbolab.models.posteriors import Posterior
from elbolab.support.user_code import Source, source_of

# Beyond which the logit of a pixel in single precision is rounding.
LEAST = 1e-6


# What whoever adopts a model says of it: the images, and the likelihood under which it is evaluated.
SAID = (*DATA_FIELDS, "data_dir", "device", "likelihood", "sigma")
_NAME = Field(None, description="Name of the model in reports [default: that of its class].")
_SAID: dict[str, Any] = {name: (field.annotation, field) for name, field in LatentConfig.model_fields.items()}
AdoptConfig = create_model(
    "AdoptConfig", __base__=Settings, name=(str | None, _NAME), **{name: _SAID[name] for name in SAID}
)
"""What is said of a model that is adopted."""


class AdoptedConfig(LatentConfig):
    """Where an adopted model comes from, and what its adapter is made of."""

    name: str = "adopted"
    """Name of the model in reports."""
    origin: str = ""
    """Folder or file that it was adopted from."""
    recipe: str = "{}"
    """What the adapter is made of, as JSON."""
    prior_components: int = 1
    """Components of a mixture prior."""

    @field_validator("sigma")
    @classmethod
    def _a_number(cls, sigma: float | str) -> float | str:
        if sigma == "learned":
            raise ValueError("an adopted model is trained no further; give the number under which it is evaluated")
        return sigma

    @field_validator("likelihood")
    @classmethod
    def _of_images(cls, likelihood: str) -> str:
        if (wanted := LIKELIHOODS[likelihood].per_pixel) > 1:
            raise ValueError(f"takes {wanted} parameters a pixel, and an adapter decodes one; take gaussian")
        return likelihood


class Adopted(LatentModel):
    """p(x | z) and q(z | x) of an adapter, under a likelihood that whoever adopts it declares."""

    Config = AdoptedConfig

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.adapter: Any = make_adapter(json.loads(config.recipe)).eval().requires_grad_(False)

    @classmethod
    def code_of(cls, config: Any) -> dict[str, Source]:
        recipe = json.loads(config.recipe)
        word = recipe.get("word")
        return {} if word is None else {word: source_of(word)}

    @classmethod
    def params_of(cls, config: Any) -> dict[str, str]:
        told = {"origin", "latent_dim", "prior", "posterior", *SAID} - {"device"}
        own = super().params_of(config)
        return {"model": config.name, **{key: value for key, value in own.items() if key in told}}

    @property
    def requirements(self) -> tuple[str, ...]:
        recipe = json.loads(self.config.recipe)
        return () if "word" in recipe else (recipe["kind"],)

    def train(self, mode: bool = True) -> "Adopted":
        super().train(mode)
        # A batch normalisation would go on learning.
        self.adapter.eval()
        return self

    def posterior(self, batch: Batch, generator: torch.Generator | None = None) -> Posterior:
        return self.family.around(*encoded(self.adapter, batch.x))

    def decode(self, z: Tensor) -> Tensor:
        images = self.adapter.decode(z.reshape(-1, z.shape[-1]))
        if getattr(self.adapter, "gives", "images") == "logits":
            params = self.likelihood.params(images)
        elif self.config.likelihood == "gaussian":
            params = images
        else:
            params = images.clamp(LEAST, 1 - LEAST).logit()
        return params.reshape(*z.shape[:-1], *images.shape[1:])

    @property
    def layers(self) -> nn.Sequential | None:
        decoder = getattr(getattr(self.adapter, "model", self.adapter), "decoder", None)
        if not isinstance(decoder, nn.Module):
            return None
        logits = getattr(self.adapter, "gives", "images") == "logits"
        leaves = [module for module in decoder.modules() if not list(module.children())]
        chain = nn.Sequential(*leaves, *([self.likelihood.mean_layer()] if logits else []))
        z = self.prior.sample((1,), torch.Generator().manual_seed(0))
        with torch.no_grad(), suppress(RuntimeError):
            # Its modules need not be all that it does, nor one after another.
            return chain if torch.allclose(chain(z).flatten(), self.expected(z).flatten(), atol=1e-5) else None
        return None

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return []
