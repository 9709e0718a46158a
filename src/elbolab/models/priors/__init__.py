"""The priors by name: a new one is a file here, of that name, and a line in ``PRIORS``."""

from elbolab.models.priors.base import Prior
from elbolab.support.lazy_classes import LazyClasses

PRIORS: LazyClasses[Prior] = LazyClasses(
    __name__,
    normal="StandardNormal",
    mixture="Mixture",
    vamp="Vamp",
    flow="SplineFlow",
)

__all__ = ["PRIORS", "Prior"]
