"""The priors by name: a new one is a file here and a line in ``PRIORS``."""

from elbolab.models.priors.base import Prior
from elbolab.models.priors.mixture import Mixture
from elbolab.models.priors.normal import StandardNormal

PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormal,
    "mixture": Mixture,
}

__all__ = ["PRIORS", "Mixture", "Prior", "StandardNormal"]
