"""The families of posteriors by name: a new one is a file here, of that name, and a line in ``POSTERIORS``."""

from elbolab.models.posteriors.base import Posterior
from elbolab.models.posteriors.diagonal import LOG_2PI, DiagonalGaussian
from elbolab.support.lazy_classes import LazyClasses

POSTERIORS: LazyClasses[Posterior] = LazyClasses(
    __name__,
    diagonal="DiagonalGaussian",
    full="FullGaussian",
    flow="CouplingFlow",
)

__all__ = ["LOG_2PI", "POSTERIORS", "DiagonalGaussian", "Posterior"]
