"""elbolab: one protocol for latent-variable generative models of images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbolab.models import MODELS as MODELS
    from elbolab.registry import load_model as load_model
    from elbolab.tuning import Study as Study

__all__ = ["MODELS", "Study", "load_model"]


_HOMES = {"MODELS": "elbolab.models", "Study": "elbolab.tuning", "load_model": "elbolab.registry"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and mlflow take seconds, which --help should not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
