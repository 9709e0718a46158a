"""The modules of 0.1.0 that files outside the package still import, under the names that they had."""

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# A registered model of 0.1.0 has its own `serving.py`. In a process that has imported today's elbolab, that file
# imports from today's; so do the studies that users copied from those of 0.1.0.
MODULES = {
    "elbolab.bounds": "elbolab.config.limits",
    "elbolab.checkpoint": "elbolab.training.checkpoint",
    "elbolab.errors": "elbolab.support.errors",
    "elbolab.evaluators": "elbolab.evaluation",
    "elbolab.evaluators.importance": "elbolab.evaluation.importance_sampling",
    "elbolab.evaluators.subject": "elbolab.evaluation.base",
    "elbolab.intervals": "elbolab.support.statistics",
    "elbolab.models.model": "elbolab.models.base",
}
WEIGHTS = "elbolab.evaluation.weights"
NAMES = {"Findings": "Results", "Subject": "Evaluation"}


def _estimate_log_px(model: Any, x: Any, q: Any, samples: int, generator: Any = None) -> Any:
    """What 0.1.0 had under this name: exact, or from ``samples`` samples of q."""
    config = import_module("elbolab.config.schema").LikelihoodConfig(method="importance", samples=samples)
    return import_module("elbolab.evaluation.log_likelihood").estimate_log_px(model, x, q, config, generator)


class OldNames(MetaPathFinder, Loader):
    """Finds a module of ``MODULES`` by its old name, with everything that it has by its new one, and ``NAMES``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # As a package without a path, so that what lies in the new one is not imported twice.
        return ModuleSpec(fullname, self, is_package=True) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        new = import_module(MODULES[module.__name__])

        def find(name: str) -> Any:
            if name == "estimate_log_px":
                return _estimate_log_px
            name = NAMES.get(name, name)
            return getattr(new if hasattr(new, name) else import_module(WEIGHTS), name)

        vars(module)["__getattr__"] = find
