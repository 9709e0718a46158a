"""In which range a study searches a field: what a field's annotation carries, as Optuna's distributions say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Optuna is imported where a study needs it: a registered model is loaded without.


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, with ``log`` evenly in their logarithm."""

    low: int
    high: int
    log: bool = False

    def distribution(self) -> "BaseDistribution":
        """The same as Optuna has it."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, self.log)


@dataclass(frozen=True)
class FloatRange:
    """Numbers from ``low`` to ``high``, with ``log`` evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def distribution(self) -> "BaseDistribution":
        """The same as Optuna has it."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, self.log)


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: Sequence[Any]

    def distribution(self) -> "BaseDistribution":
        """The same as Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(tuple(self.values))


def distribution_of(metadata: Sequence[Any]) -> "BaseDistribution | None":
    """The range among what annotates a field, one of these or of Optuna's; None where there is none."""
    for item in metadata:
        if isinstance(item, IntRange | FloatRange | Choices):
            return item.distribution()
        if type(item).__module__ == "optuna.distributions":
            return item
    return None
