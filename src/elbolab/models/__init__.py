"""The models by name: a new one is a file here, of that name, and a line in ``MODELS``."""

from typing import TYPE_CHECKING

from elbolab.support.lazy_classes import LazyClasses

if TYPE_CHECKING:
    from elbolab.models.base import Model

MODELS: "LazyClasses[Model]" = LazyClasses(
    __name__,
    "Model",
    "elbolab.models",
    {"adopted": "Adopted"},
    cnn="CNN",
    vae="VAE",
    iwae="IWAE",
    semi_amortized="SemiAmortized",
    latent_opt="LatentOpt",
    ppca="PPCA",
)
