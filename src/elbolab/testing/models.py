"""What every model must do: ``ModelTests`` for a model of any kind, ``LatentModelTests`` for one with a posterior."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elbolab.data.splits import Data, load_data
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.trainer import Event, train

Make = Callable[..., Any]


@cache
def digits(train_size: int = 64, others: int = 20) -> Data:
    """So many digits to train on, and ``others`` to validate and to test."""
    return load_data("mnist5k", Path(), train_size, others, others)


def make_model(model_class: type[Model], data: Data, **fields: Any) -> Model:
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


def copies(model: Model) -> dict[str, Tensor]:
    """The weights of a model as they are now."""
    return {key: value.clone() for key, value in model.state_dict().items()}


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

    @pytest.fixture
    def make(self, model_class: type[Model], fields: dict[str, Any]) -> Make:
        """Makes the model, of other fields or data where they are given."""
        return lambda data=None, **more: make_model(model_class, data or digits(), **{**fields, **more})

    def check_learnt(self, first: dict[str, float], last: dict[str, float]) -> None:
        """Whether the metrics of the last epoch are those of sixteen images learnt by heart."""
        assert last["train/loss"] < 0.5 * first["train/loss"]

    def test_terms_are_finite_log_densities_of_shape_samples_by_batch(self, make: Make):
        model = make()
        terms = model.terms(next(digits().train.batches(12)), self.samples)
        for value in (terms.log_px_z, terms.log_pz, terms.log_qz):
            assert value.shape == (self.samples, 12)
            assert value.isfinite().all()
        assert all(value.shape == (12,) for value in (terms.kl, *model.metrics(terms).values()))

    def test_every_free_parameter_has_a_gradient(self, make: Make):
        model = make()
        if not (parameters := dict(model.named_parameters())):
            assert not model.optimizers()
            return
        model.loss(model.terms(next(digits().train.batches(64))), 1.0).backward()
        still = {key for key, value in parameters.items() if value.grad is None}
        assert still == parameters.keys() & {*self.untrained}

    def test_a_checkpoint_gives_the_same_numbers(self, make: Make, tmp_path: Path):
        model = make(epochs=1)
        run(model, digits(), tmp_path)
        loaded = load_checkpoint(tmp_path / "last.safetensors")
        assert (type(loaded), loaded.config, loaded.spec) == (type(model), model.config, model.spec)
        values = []
        for each in (model.eval(), loaded):
            torch.manual_seed(1)
            values.append(each.terms(next(digits().val.batches(10))).log_px_z)
        assert torch.equal(*values)

    def test_sixteen_images_are_learnt_by_heart(self, make: Make, tmp_path: Path):
        data = digits(16, 10)
        model = make(data, epochs=300, schedule="cosine")
        events = run(model, data, tmp_path)
        if model.optimizers():
            self.check_learnt(events[0].metrics, events[-1].metrics)

    def test_equal_seeds_give_equal_weights_bit_for_bit(self, make: Make, tmp_path: Path):
        models = [make(epochs=2, seed=seed) for seed in (0, 0, 1)]
        for model in models:
            run(model, digits(), tmp_path)
        first, same, other = map(copies, models)
        assert all(torch.equal(first[key], same[key]) for key in first)
        if list(models[0].parameters()):
            assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_bfloat16_is_of_the_nets_while_they_train_and_of_nothing_else(self, make: Make):
        models = [make(precision=name) for name in ("float32", "bfloat16")]
        batch = next(digits().train.batches(32))

        def terms_and_gradients(model: Model, training: bool) -> tuple[Tensor, Tensor]:
            model.train(training).zero_grad()
            torch.manual_seed(1)
            terms = model.terms(batch, model.train_samples)
            if list(model.parameters()):
                model.loss(terms, 1.0).backward()
            parts = [value.grad.to_dense().flatten() for value in model.parameters() if value.grad is not None]
            return terms.log_px_z, torch.cat(parts or [torch.empty(0)])

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
    def small(self, make: Make) -> LatentModel:
        """The model in two dimensions, in which densities can be integrated."""
        return make(latent_dim=2).eval()

    @torch.no_grad()
    def test_prior_and_posteriors_are_normalised(self, small: LatentModel):
        q = small.infer(next(digits().val.batches(4)), torch.Generator().manual_seed(0))
        for density, mean, variance in ((q, q.mean, q.variance), (small.prior, *small.prior.moments())):
            # Twice as wide, so that the ratio of the two has a variance.
            wide = torch.distributions.Normal(mean, 2 * variance.sqrt())
            torch.manual_seed(0)
            z = wide.sample((20_000,))
            ratio = (density.log_prob(z) - wide.log_prob(z).sum(-1)).exp()
            assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(20_000)).all()

    @torch.no_grad()
    def test_kl_is_the_mean_of_log_q_less_log_p(self, small: LatentModel):
        q = small.infer(next(digits().val.batches(4)), torch.Generator().manual_seed(0))
        z = q.sample(20_000, torch.Generator().manual_seed(1))
        ratio = q.log_prob(z) - small.prior.log_prob(z)
        assert ((ratio.mean(0) - q.kl(small.prior, z)).abs() < 5 * ratio.std(0) / math.sqrt(20_000) + 1e-5).all()

    @torch.no_grad()
    def test_importance_weights_have_the_mean_p_of_x(self, small: LatentModel):
        batch = small.observe(next(digits().val.batches(4)), torch.Generator().manual_seed(0))
        if (exact := small.exact_log_px(batch.x)) is not None:
            q = small.infer(batch, torch.Generator().manual_seed(0))
            terms = small.terms_at(batch, q, q.sample(2000, torch.Generator().manual_seed(1)))
            ratio = (terms.log_w - exact).exp()
            assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(2000) + 1e-2).all()

    def test_equal_generators_give_equal_terms_and_equal_seeds_equal_samples(self, small: LatentModel):
        batch = next(digits().train.batches(12))
        one, other = (small.terms(batch, 3, torch.Generator().manual_seed(5)).log_w for _ in range(2))
        assert torch.equal(one, other)
        first, same, another = (small.sample(5, seed) for seed in (3, 3, 4))
        assert first.shape == (5, *small.spec.shape)
        assert torch.equal(first, same)
        assert not torch.equal(first, another)
        assert 0 <= first.min() <= first.max() <= 1

    def test_inference_of_unseen_images_leaves_the_model_as_it_was(self, small: LatentModel):
        before = copies(small)
        batch = small.observe(next(digits().test.batches(7)), torch.Generator().manual_seed(0))
        one, other = (small.infer(batch, torch.Generator().manual_seed(0)) for _ in range(2))
        assert one.mean.shape == one.variance.shape == (7, 2)
        assert torch.equal(one.rows, other.rows)
        assert not one.mean.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
        assert all(parameter.grad is None for parameter in small.parameters())
