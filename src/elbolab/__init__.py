"""elbolab: one protocol for latent-variable generative models of images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbolab.models import MODELS as MODELS
    from elbolab.registry import load_model as load_model
    from elbolab.tuning import Study as Study

__all__ = ["MODELS", "Study", "load_model"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and mlflow take seconds, which --help should not.
    if name == "MODELS":
        from elbolab.models import MODELS

        return MODELS
    if name == "load_model":
        from elbolab.registry import load_model

        return load_model
    if name == "Study":
        from elbolab.tuning import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
