"""The families of posteriors by name: a new one is a file here and a line in ``POSTERIORS``."""

from elbolab.models.posteriors.base import Posterior
from elbolab.models.posteriors.diagonal import LOG_2PI, DiagonalGaussian
from elbolab.models.posteriors.full import FullGaussian

POSTERIORS: dict[str, type[Posterior]] = {
    "diagonal": DiagonalGaussian,
    "full": FullGaussian,
}

__all__ = ["LOG_2PI", "POSTERIORS", "DiagonalGaussian", "FullGaussian", "Posterior"]
