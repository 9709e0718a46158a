"""What is measured of a trained model, and the declaration of every metric."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbolab.evaluation.base import Evaluation, Results
    from elbolab.evaluation.evaluators import EVALUATORS

__all__ = ["EVALUATORS", "Evaluation", "Results"]

_MODULES = {"EVALUATORS": "evaluators", "Evaluation": "base", "Results": "base"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the metrics are declared beside them, and torch takes seconds.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
