"""Whatever draws takes its numbers from the generator that it is given, and leaves all others as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import batch_of, linear_gaussian, make_likelihood

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data
from elbolab.evaluation.annealing import PriorStart, annealed_estimate, bidirectional_bounds
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.models import MODELS
from elbolab.models.fitting import fit_anew
from elbolab.models.latent import LatentModel
from elbolab.testing.models import make_model

MODEL, X = linear_gaussian(3)
Q = MODEL.infer(batch_of(X), None)
Z = MODEL.prior.sample((len(X),), torch.Generator().manual_seed(0))
START = PriorStart(MODEL.prior, len(X))
CONFIG = EvaluateConfig(ais_chains=2, ais_distributions=4, ais_leapfrog=1, samples=10)
GREY = torch.full((2, 1, 3, 3), 0.5)
TWO = torch.cat([GREY, -GREY], 1)

DRAWS: dict[str, Callable[[torch.Generator], Any]] = {
    "diagonal posterior": lambda g: Q.sample(4, g),
    "normal prior": lambda g: MODEL.prior.sample((4,), g),
    "gaussian": lambda g: make_likelihood("gaussian").sample(GREY, g),
    "bernoulli": lambda g: make_likelihood("bernoulli").sample(GREY, g),
    "binarised pixels": lambda g: make_likelihood("bernoulli").observe(GREY, g),
    "continuous bernoulli": lambda g: make_likelihood("continuous_bernoulli").sample(GREY, g),
    "discretised logistic": lambda g: make_likelihood("discretised_logistic").sample(TWO, g),
    "fitted posterior": lambda g: fit_anew(MODEL, X, 2, generator=g).mean,
    "fitted posterior of a drawn start": lambda g: fit_anew(MODEL, X, 2, drawn=True, generator=g).mean,
    "importance samples": lambda g: importance_estimate(MODEL, X, Q, 4, g).log_px,
    "annealed chains": lambda g: annealed_estimate(MODEL, X, START, CONFIG, g).log_px,
    "bounds from both sides": lambda g: torch.stack(bidirectional_bounds(MODEL, X, Z, START, CONFIG, g)),
}


def differ(draw: Callable[[torch.Generator], torch.Tensor]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_of_their_generator(draw: Callable[[torch.Generator], torch.Tensor]):
    differ(draw)


@pytest.mark.parametrize("simulated", [False, True])
def test_estimates_are_those_of_their_generator(simulated: bool, digits: Data):
    model = make_model(
        MODELS["vae"], digits, net="mlp", hidden=8, latent_dim=3, posterior="full", prior="mixture"
    ).eval()
    assert isinstance(model, LatentModel)
    batch = digits.test.batch(torch.arange(4))
    q, z = model.infer(batch, None), model.prior.sample((4,), torch.Generator().manual_seed(0))
    differ(lambda g: q.sample(4, g))
    differ(lambda g: model.prior.sample((4,), g))
    # Annealed, since so small an error asks for it.
    config = EvaluateConfig(tolerance=1e-3, samples=10, budget=4096)
    differ(lambda g: estimate_log_px(model, batch.x, q, config, g, z if simulated else None).log_px)
