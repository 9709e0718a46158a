"""The models by name: a new one is a file here, of that name, and a line in ``MODELS``."""

from typing import TYPE_CHECKING

from elbolab.support.open_classes import OpenClasses
from elbolab.support.user_code import digest_of

if TYPE_CHECKING:
    from elbolab.config.schema import Config
    from elbolab.models.base import Model

MODELS: "OpenClasses[Model]" = OpenClasses(
    __name__,
    "Model",
    "elbolab.models",
    {"adopted": "Adopted"},
    cnn="CNN",
    vae="VAE",
    iwae="IWAE",
    hierarchical="Hierarchical",
    semi_amortized="SemiAmortized",
    latent_opt="LatentOpt",
    ppca="PPCA",
)


def params_of(kind: "type[Model]", config: "Config") -> dict[str, str]:
    """The parameters of a run of this model: its name, the digest of the user's own code, the config."""
    code = kind.code_of(config)
    return {"model": MODELS.name_of(kind), **({"code": digest_of(code)} if code else {}), **kind.params_of(config)}
