"""The likelihoods by name: a new one is a file here, of that name, and a line in ``LIKELIHOODS``."""

from elbolab.models.likelihoods.base import PIXELS, Likelihood
from elbolab.support.lazy_classes import LazyClasses

LIKELIHOODS: LazyClasses[Likelihood] = LazyClasses(
    __name__,
    gaussian="Gaussian",
    bernoulli="Bernoulli",
    continuous_bernoulli="ContinuousBernoulli",
    discretised_logistic="DiscretisedLogistic",
)

__all__ = ["LIKELIHOODS", "PIXELS", "Likelihood"]
