"""What every evaluator must do: ``EvaluatorTests``."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elbolab.config.schema import EvaluateConfig
from elbolab.data.batches import Data
from elbolab.evaluation import Evaluation, Results
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.models.cnn import CNN
from elbolab.testing.models import copies, digits, make_model

Evaluator = Callable[[Evaluation], Results]


def text(value: Any) -> str:
    """The artifact of a value, as text: a table, named arrays, or what JSON holds."""
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    return json.dumps(value, default=np.ndarray.tolist)


class EvaluatorTests:
    """Derive from it in a test file and override the fixture ``evaluator``."""

    config = EvaluateConfig(samples=30, images=10, gap_images=2, ais_chains=2, ais_distributions=3, local_steps=2)
    """How the models are evaluated: with everything that an evaluator may be asked for."""

    @pytest.fixture
    def evaluator(self) -> Evaluator:
        """The function that is tested."""
        raise NotImplementedError("override the fixture evaluator with one that returns your function")

    @pytest.fixture(params=["cnn", "vae", "latent_opt", "ppca"])
    def model(self, request: pytest.FixtureRequest) -> Model:
        """A model that every evaluator is given: of them, one classifies, one infers, one fits, one is exact."""
        small = {"latent_dim": 3, "net": "mlp", "hidden": 8, "fit_steps": 3}
        kind = MODELS[request.param]
        fields = {key: value for key, value in small.items() if key in kind.Config.model_fields}
        return make_model(kind, digits(40, 20), **fields).eval()

    def results(self, evaluator: Evaluator, model: Model, data: Data) -> Results:
        """What it finds of a model, its judge a classifier that has not learnt yet, its other data inverted images."""
        with torch.random.fork_rng(devices=[]):
            judge = make_model(CNN, data).eval()
        assert isinstance(judge, CNN)
        inverted = replace(data.test, images=255 - data.test.images, digest="inverted")
        return evaluator(Evaluation(model, data, self.config, ("classifier", judge), {"inverted": inverted}))

    def test_it_finds_the_same_again_and_leaves_everything_as_it_was(self, evaluator: Evaluator, model: Model):
        data = digits(40, 20)
        before = copies(model)
        images = {split: part.images.clone() for split, part in data.splits.items()}
        random = torch.get_rng_state()
        first = self.results(evaluator, model, data)
        again = self.results(evaluator, model, data)
        assert (again.metrics, again.tags) == (first.metrics, first.tags)
        assert {name: text(value) for name, value in again.files.items()} == {
            name: text(value) for name, value in first.files.items()
        }
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(part.images, images[split]) for split, part in data.splits.items())

    def test_its_keys_name_a_split_and_its_figures_are_numbers(self, evaluator: Evaluator, model: Model):
        found = self.results(evaluator, model, digits(40, 20))
        for key, value in found.metrics.items():
            assert re.fullmatch(r"(train|val|test|simulated|ood)/\w+", key), key
            assert isinstance(value, float | int)
            assert not math.isnan(value), key
        assert all(isinstance(value, str) for value in found.tags.values())
        assert {Path(name).suffix for name in found.files} <= {".parquet", ".npz", ".json"}

    def test_what_it_says_of_validation_images_it_says_without_the_test_images(
        self, evaluator: Evaluator, model: Model
    ):
        data = digits(40, 20)
        inverted = replace(data, test=replace(data.test, images=255 - data.test.images))
        one, other = (self.results(evaluator, model, each).metrics for each in (data, inverted))
        seen = {key: value for key, value in one.items() if not key.startswith(("test/", "ood/"))}
        assert {key: other.get(key) for key in seen} == seen
