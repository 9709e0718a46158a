"""What every model must do: ``ModelTests`` for a model of any kind, ``LatentModelTests`` for one with a posterior."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elbolab.data.splits import Data, load_data
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.trainer import Event, train


@cache
def digits(train_size: int, other: int) -> Data:
    """So many digits to train on, and ``other`` to validate and to test."""
    return load_data("mnist5k", Path(), train_size, other, other)


def make(model_class: type[Model], data: Data, **fields: Any) -> Model:
    """The model before its first step, its first weights drawn by seed 0."""
    torch.manual_seed(0)
    config = model_class.Config.parse({"dataset": "mnist5k", "batch_size": 16, **fields})
    model = model_class(config, data.spec)
    model.prepare(data)
    return model


def run(model: Model, data: Data, folder: Path) -> list[Event]:
    """The events of its training, whose checkpoints lie in ``folder`` then."""
    events: list[Event] = []
    # Another training that took a second has left its states there.
    for state in folder.glob("state-*"):
        state.unlink()
    train(model, data, events.append, folder)
    return events


class ModelTests:
    """Derive from it in a test file and override the fixture ``model_class`` (and ``fields``, where it needs some)."""

    samples = 1
    """Samples that a batch's terms are asked for."""
    untrained: tuple[str, ...] = ()
    """Parameters that no training image moves."""

    @pytest.fixture
    def model_class(self) -> type[Model]:
        """The class that is tested."""
        raise NotImplementedError("override the fixture model_class with one that returns your model's class")

    @pytest.fixture
    def fields(self) -> dict[str, Any]:
        """Values of fields of its config, for all tests."""
        return {}

    @pytest.fixture(autouse=True)
    def _named(self, model_class: type[Model], monkeypatch: pytest.MonkeyPatch) -> None:
        # A checkpoint names its model.
        if model_class not in MODELS.values():
            monkeypatch.setitem(MODELS.classes, "tested", model_class)

    @pytest.fixture
    def data(self) -> Data:
        """64 training, 20 validation and 20 test digits."""
        return digits(64, 20)

    def check_learnt(self, first: dict[str, float], last: dict[str, float]) -> None:
        """Whether the metrics of the last epoch are those of sixteen images learnt by heart."""
        assert last["train/loss"] < 0.5 * first["train/loss"]

    def test_terms_are_finite_log_densities_of_shape_samples_by_batch(
        self, model_class: type[Model], fields: dict[str, Any], data: Data
    ) -> None:
        model = make(model_class, data, **fields)
        terms = model.terms(next(data.train.batches(12)), self.samples)
        for value in (terms.log_px_z, terms.log_pz, terms.log_qz):
            assert value.shape == (self.samples, 12)
            assert value.isfinite().all()
        assert terms.kl.shape == (12,)
        assert all(value.shape == (12,) for value in model.metrics(terms).values())

    def test_every_free_parameter_has_a_gradient(
        self, model_class: type[Model], fields: dict[str, Any], data: Data
    ) -> None:
        model = make(model_class, data, **fields)
        if not list(model.parameters()):
            assert not model.optimizers()
            return
        model.loss(model.terms(next(data.train.batches(len(data.train)))), 1.0).backward()
        assert {key for key, value in model.named_parameters() if value.grad is None} == {*self.untrained} & {
            key for key, _ in model.named_parameters()
        }

    def test_a_checkpoint_gives_the_same_numbers(
        self, model_class: type[Model], fields: dict[str, Any], data: Data, tmp_path: Path
    ) -> None:
        model = make(model_class, data, epochs=1, **fields)
        run(model, data, tmp_path)
        loaded = load_checkpoint(tmp_path / "last.safetensors")
        assert (type(loaded), loaded.config, loaded.spec) == (model_class, model.config, model.spec)
        model.eval()
        values = []
        for each in (model, loaded):
            torch.manual_seed(1)
            values.append(each.terms(next(data.val.batches(10))).log_px_z)
        assert torch.equal(*values)

    def test_sixteen_images_are_learnt_by_heart(
        self, model_class: type[Model], fields: dict[str, Any], tmp_path: Path
    ) -> None:
        data = digits(16, 10)
        model = make(model_class, data, **{**fields, "epochs": 300})
        events = run(model, data, tmp_path)
        if model.optimizers():
            self.check_learnt(events[0].metrics, events[-1].metrics)

    def test_equal_seeds_give_equal_weights_bit_for_bit(
        self, model_class: type[Model], fields: dict[str, Any], data: Data, tmp_path: Path
    ) -> None:
        states = []
        for seed in (0, 0, 1):
            model = make(model_class, data, **{**fields, "epochs": 2, "seed": seed})
            run(model, data, tmp_path)
            states.append(model.state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        if list(model.parameters()):
            assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])

    def test_bfloat16_is_of_the_nets_while_they_train_and_of_nothing_else(
        self, model_class: type[Model], fields: dict[str, Any], data: Data
    ) -> None:
        models = [make(model_class, data, **{**fields, "precision": name}) for name in ("float32", "bfloat16")]
        batch = next(data.train.batches(32))

        def terms_and_gradients(model: Model, training: bool) -> tuple[Tensor, Tensor]:
            model.train(training).zero_grad()
            torch.manual_seed(1)
            terms = model.terms(batch, model.train_samples)
            if list(model.parameters()):
                model.loss(terms, 1.0).backward()
            parts = [value.grad.to_dense().flatten() for value in model.parameters() if value.grad is not None]
            return terms.log_px_z, torch.cat(parts) if parts else torch.empty(0)

        (exact, _), (same, _) = (terms_and_gradients(model, False) for model in models)
        assert torch.equal(exact, same)
        (exact, gradients), (rounded, others) = (terms_and_gradients(model, True) for model in models)
        assert rounded.dtype == others.dtype == torch.float32
        if len(gradients):
            assert torch.cosine_similarity(gradients, others, dim=0) > 0.98
        # Eight bits of the mean of a pixel, whose errors of either sign add up.
        assert torch.allclose(exact, rounded, rtol=0.02, atol=0.02)


class LatentModelTests(ModelTests):
    """``ModelTests``, and what a model with latent variables must do beside it."""

    samples = 3

    def check_learnt(self, first: dict[str, float], last: dict[str, float]) -> None:
        assert last["train/mse"] < 0.25 * first["train/mse"]

    @pytest.fixture
    def small(self, model_class: type[Model], fields: dict[str, Any], data: Data) -> LatentModel:
        """The model in two dimensions, in which densities can be integrated."""
        model = make(model_class, data, **{**fields, "latent_dim": 2})
        assert isinstance(model, LatentModel)
        return model.eval()

    def test_prior_and_posteriors_are_normalised(self, small: LatentModel, data: Data) -> None:
        q = small.infer(next(data.val.batches(4)), torch.Generator().manual_seed(0))
        for density, mean, variance in ((q, q.mean, q.variance), (small.prior, *small.prior.moments())):
            # Twice as wide, so that the ratio of the two is bounded.
            wide = torch.distributions.Normal(mean, 2 * variance.sqrt())
            torch.manual_seed(0)
            z = wide.sample((20_000,))
            with torch.no_grad():
                ratio = (density.log_prob(z) - wide.log_prob(z).sum(-1)).exp()
            assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(20_000)).all()

    def test_kl_is_the_mean_of_log_q_less_log_p(self, small: LatentModel, data: Data) -> None:
        q = small.infer(next(data.val.batches(4)), torch.Generator().manual_seed(0))
        z = q.sample(20_000, torch.Generator().manual_seed(1))
        with torch.no_grad():
            ratio = q.log_prob(z) - small.prior.log_prob(z)
            kl = q.kl(small.prior, z)
        assert ((ratio.mean(0) - kl).abs() < 5 * ratio.std(0) / math.sqrt(20_000) + 1e-5).all()

    def test_weights_of_importance_have_the_mean_p_of_x(self, small: LatentModel, data: Data) -> None:
        batch = small.observe(next(data.val.batches(4)), torch.Generator().manual_seed(0))
        if (exact := small.exact_log_px(batch.x)) is None:
            return
        q = small.infer(batch, torch.Generator().manual_seed(0))
        with torch.no_grad():
            terms = small.terms_at(batch, q, q.sample(2000, torch.Generator().manual_seed(1)))
        ratio = (terms.log_w - exact).exp()
        assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(2000) + 1e-2).all()

    def test_equal_generators_give_equal_terms(
        self, model_class: type[Model], fields: dict[str, Any], data: Data
    ) -> None:
        model = make(model_class, data, **fields)
        batch = next(data.train.batches(12))
        one, other = (model.terms(batch, 3, torch.Generator().manual_seed(5)).log_w for _ in range(2))
        assert torch.equal(one, other)

    def test_equal_seeds_give_equal_samples(self, small: LatentModel) -> None:
        first = small.sample(5, seed=3)
        assert first.shape == (5, *small.spec.shape)
        assert torch.equal(first, small.sample(5, seed=3))
        assert not torch.equal(first, small.sample(5, seed=4))
        assert 0 <= first.min() <= first.max() <= 1

    def test_inference_of_unseen_images_leaves_the_model_as_it_was(self, small: LatentModel, data: Data) -> None:
        before = {key: value.clone() for key, value in small.state_dict().items()}
        batch = small.observe(next(data.test.batches(7)), torch.Generator().manual_seed(0))
        one, other = (small.infer(batch, torch.Generator().manual_seed(0)) for _ in range(2))
        assert one.mean.shape == one.variance.shape == (7, 2)
        assert all(torch.equal(*pair) for pair in zip(one.tensors, other.tensors, strict=True))
        assert not one.mean.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
        assert all(parameter.grad is None for parameter in small.parameters())
