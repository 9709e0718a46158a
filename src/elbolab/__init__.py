"""elbolab: one protocol for latent-variable generative models of images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbolab.config import CompareConfig as CompareConfig
    from elbolab.config import EvaluateConfig as EvaluateConfig
    from elbolab.evaluators.importance import importance_estimate as importance_estimate
    from elbolab.experiment import evaluate_run as evaluate_run
    from elbolab.experiment import load_for as load_for
    from elbolab.experiment import train_model as train_model
    from elbolab.models import MODELS as MODELS
    from elbolab.models.latent import DiagonalGaussian as DiagonalGaussian
    from elbolab.records import history as history
    from elbolab.registry import load_model as load_model
    from elbolab.report.charts import Chart as Chart
    from elbolab.report.charts import Line as Line
    from elbolab.reproduction import Reproduction as Reproduction
    from elbolab.reproduction import Training as Training
    from elbolab.tuning import Study as Study

_HOMES = {
    "MODELS": "elbolab.models",
    "Chart": "elbolab.report.charts",
    "CompareConfig": "elbolab.config",
    "DiagonalGaussian": "elbolab.models.latent",
    "EvaluateConfig": "elbolab.config",
    "Line": "elbolab.report.charts",
    "Reproduction": "elbolab.reproduction",
    "Study": "elbolab.tuning",
    "Training": "elbolab.reproduction",
    "evaluate_run": "elbolab.experiment",
    "history": "elbolab.records",
    "importance_estimate": "elbolab.evaluators.importance",
    "load_for": "elbolab.experiment",
    "load_model": "elbolab.registry",
    "train_model": "elbolab.experiment",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and mlflow take seconds, which --help should not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
