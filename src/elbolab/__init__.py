"""elbolab: one protocol for latent-variable generative models of images."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elbolab.support.old_names import OldNames

if TYPE_CHECKING:
    from elbolab.config.schema import CompareConfig, EvaluateConfig
    from elbolab.data.saving import save_dataset
    from elbolab.evaluation import Evaluation, Results
    from elbolab.evaluation.importance_sampling import importance_estimate
    from elbolab.experiment.adopt import adopt
    from elbolab.experiment.evaluate import evaluate_run
    from elbolab.experiment.loading import load_for
    from elbolab.experiment.train import train_model
    from elbolab.models import MODELS
    from elbolab.models.posteriors import DiagonalGaussian
    from elbolab.registry.packaging import load_model
    from elbolab.report.chart import Chart, Line
    from elbolab.tracking.mlflow_reader import history
    from elbolab.tuning.reproduction import Reproduction, Training
    from elbolab.tuning.study import Study

_MODULES = {
    "MODELS": "models",
    "Chart": "report.chart",
    "CompareConfig": "config.schema",
    "DiagonalGaussian": "models.posteriors",
    "EvaluateConfig": "config.schema",
    "Evaluation": "evaluation",
    "Line": "report.chart",
    "Reproduction": "tuning.reproduction",
    "Results": "evaluation",
    "Study": "tuning.study",
    "Training": "tuning.reproduction",
    "adopt": "experiment.adopt",
    "evaluate_run": "experiment.evaluate",
    "history": "tracking.mlflow_reader",
    "importance_estimate": "evaluation.importance_sampling",
    "load_for": "experiment.loading",
    "load_model": "registry.packaging",
    "save_dataset": "data.saving",
    "train_model": "experiment.train",
}
__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


sys.meta_path.insert(0, OldNames())


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and mlflow take seconds, which --help should not.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
