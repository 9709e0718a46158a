"""The models by name: a new one is a file here, of that name, and a line in ``MODELS``."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elbolab.models.base import Model


class _Models(Mapping[str, type["Model"]]):
    """Classes of the files of these names, imported when they are asked for: torch takes two seconds, a list none."""

    def __init__(self, **classes: "str | type[Model]") -> None:
        self.classes = classes

    def __getitem__(self, name: str) -> type["Model"]:
        found = self.classes[name]
        return getattr(import_module(f"{__name__}.{name}"), found) if isinstance(found, str) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)


MODELS = _Models(
    cnn="CNN",
    vae="VAE",
    iwae="IWAE",
    semi_amortized="SemiAmortized",
    latent_opt="LatentOpt",
    ppca="PPCA",
)
