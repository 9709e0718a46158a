"""Models under likelihoods with parameters of their own, or with more than one a pixel: conformance and training."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from elbolab.data.splits import Data
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.models.likelihoods.gaussian import Gaussian
from elbolab.support.errors import UserError
from elbolab.testing.models import LatentModelTests, make_model, run
from elbolab.training.checkpoint import load_checkpoint

NEW: dict[str, dict[str, Any]] = {
    "learned": {"sigma": "learned"},
    "logistic": {"likelihood": "discretised_logistic"},
}
SMALL = {"latent_dim": 4, "net": "mlp", "hidden": 16, "epochs": 2}


class TestModels(LatentModelTests):
    untrained = ("val_rows",)

    @pytest.fixture(params=["vae", "latent_opt"])
    def name(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture
    def model_class(self, name: str) -> type[Model]:
        return MODELS[name]

    @pytest.fixture(params=NEW)
    def fields(self, name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"latent_dim": 16, **NEW[request.param], **({"fit_steps": 5} if name == "latent_opt" else {})}


@pytest.mark.parametrize("name", ["vae", "iwae", "semi_amortized", "latent_opt"])
def test_a_learned_sigma_is_trained_with_the_decoder_logged_and_kept(name: str, digits: Data, tmp_path: Path):
    model = make_model(MODELS[name], digits, **{**SMALL, **NEW["learned"], "epochs": 20, "lr": 0.003})
    assert isinstance(model, LatentModel)
    tag = model.observation_model
    rates = {len(group["params"]): group["lr"] for group in model.optimizers()[0].param_groups}
    assert rates[1] == 10 * model.config.lr
    events = run(model, digits, tmp_path)
    values = [event.metrics["val/sigma"] for event in events]
    # Its maximum-likelihood value is the root mean square residual, which falls from 0.5 on.
    assert values[-1] == pytest.approx(math.sqrt(events[-1].metrics["train/mse"]), rel=0.05)
    assert values[-1] < 0.3
    assert events[-1].metrics["train/sigma"] != values[-1]
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    assert isinstance(loaded, LatentModel)
    assert isinstance(loaded.likelihood, Gaussian)
    assert loaded.likelihood.learned()["sigma"].item() == pytest.approx(values[-1])
    # What training changes is no part of the tag, by which runs are compared.
    assert loaded.observation_model == tag == "gaussian sigma=learned, pixels in [0,1]"


def test_a_fixed_sigma_is_no_parameter_and_no_metric(digits: Data, tmp_path: Path):
    model = make_model(MODELS["vae"], digits, **SMALL)
    assert not [key for key in model.state_dict() if key.startswith("likelihood")]
    assert not [key for event in run(model, digits, tmp_path) for key in event.metrics if "sigma" in key]


def test_a_model_starts_from_another_with_its_learned_sigma(digits: Data):
    source, model = (make_model(MODELS["vae"], digits, **SMALL, **NEW["learned"]) for _ in range(2))
    assert isinstance(source, LatentModel)
    assert isinstance(model, LatentModel)
    assert isinstance(source.likelihood, Gaussian)
    assert isinstance(model.likelihood, Gaussian)
    source.likelihood.log_sigma.data.fill_(-2)
    model.start_from("start", source)
    assert model.likelihood.log_sigma.item() == -2
    fixed = make_model(MODELS["vae"], digits, **SMALL)
    with pytest.raises(UserError, match=r"gaussian sigma=0.4, .* but this model has gaussian sigma=learned"):
        model.start_from("start", fixed)


def test_a_decoder_gives_two_parameters_of_each_number_of_an_image(digits: Data):
    model = make_model(MODELS["vae"], digits, **SMALL, **NEW["logistic"]).eval()
    assert isinstance(model, LatentModel)
    z = torch.randn(3, 5, 4)
    assert model.decode(z).shape == (3, 5, 2, 28, 28)
    assert model.expected(z).shape == (3, 5, 1, 28, 28)
    assert model.observation_model == "discretised logistic, pixels of 256 values"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "vae",
            {**NEW["logistic"], "binarise": "half"},
            "binarise='half' leaves pixels of 2 values, and likelihood='discretised_logistic' is of 256; leave "
            "binarise out, or take likelihood='bernoulli'",
        ),
        (
            "latent_opt",
            {"likelihood": "discretised_logistic", "binarise": "once"},
            "binarise='once' leaves pixels of 2",
        ),
        ("ppca", {"sigma": "learned"}, "sigma='learned': is trained by gradient, which ppca is not; take free_sigma"),
        ("ppca", NEW["logistic"], "likelihood='discretised_logistic': should be 'gaussian'"),
        ("vae", {"sigma": "learnt"}, "sigma='learnt': should be a valid number, or should be 'learned' (default 0.4)"),
        ("vae", {"sigma": 0}, "sigma=0: should be greater than 0"),
    ],
)
def test_a_likelihood_that_does_not_fit_is_one_line(name: str, values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        MODELS[name].Config.parse(values)
    assert "\n" not in str(error.value)
