"""What iwae and semi_amortized do beside what every model must: gradients of the bound, posteriors refined by steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elbolab.data.batches import Batch, Data
from elbolab.models.iwae import IWAE
from elbolab.models.latent import LatentModel
from elbolab.models.neural import EncoderModel
from elbolab.models.posteriors import DiagonalGaussian, Posterior
from elbolab.models.semi_amortized import SemiAmortized
from elbolab.training.trainer import train

SMALL: dict[str, Any] = {"latent_dim": 3, "net": "mlp", "hidden": 16, "activation": "tanh"}


def make(kind: type[IWAE] | type[SemiAmortized], data: Data, **fields: Any) -> Any:
    torch.manual_seed(0)
    return kind(kind.Config.parse({**SMALL, **fields}), data.spec)


def copies(data: Data, count: int) -> Batch:
    """The same image, ``count`` times: what is random about it becomes a sample."""
    return data.train.batch(torch.zeros(count, dtype=torch.int64))


# iwae


def test_the_bound_of_one_sample_is_the_elbo_with_the_kl_of_that_sample(digits: Data):
    model = make(IWAE, digits, iw_samples=1)
    terms = model.terms(next(digits.train.batches(20)), model.train_samples)
    torch.testing.assert_close(model.loss(terms, 1.0), (terms.log_qz - terms.log_pz - terms.log_px_z).mean())


def test_the_bound_rises_with_its_samples_and_the_elbo_does_not(digits: Data):
    model = make(IWAE, digits)
    batch = copies(digits, 2000)
    bounds, elbos = {}, {}
    for samples in (1, 5, 25):
        with torch.no_grad():
            metrics = model.metrics(model.terms(batch, samples))
        bounds[samples], elbos[samples] = metrics["iw_bound"], metrics["elbo"]
    for fewer, more in ((1, 5), (5, 25)):
        assert bounds[more].mean() > bounds[fewer].mean()
        assert abs(elbos[more].mean() - elbos[fewer].mean()) < 5 * elbos[fewer].std() / math.sqrt(2000)


def test_the_best_epoch_of_iwae_is_that_of_its_own_bound(digits: Data, tmp_path: Path):
    model, events = make(IWAE, digits, epochs=8, lr=0.05, batch_size=16), []
    train(model, digits, events.append, tmp_path)
    bounds = [event.metrics["val/iw_bound"] for event in events]
    assert [event.best for event in events] == [
        all(bound > old for old in bounds[:i]) for i, bound in enumerate(bounds)
    ]
    assert bounds != sorted(bounds)
    assert all(event.metrics["val/elbo"] < bound for event, bound in zip(events, bounds, strict=True))


def gradients(model: IWAE, batch: Batch, q: DiagonalGaussian, samples: int) -> tuple[Tensor, list[Tensor]]:
    """Of the loss summed over images: by each image's mean and log-variance (B, 2D), and by the decoder's weights."""
    at = DiagonalGaussian(q.mean.clone().requires_grad_(), q.log_var.clone().requires_grad_())
    terms = model.terms_at(batch, at, at.sample(samples, torch.Generator().manual_seed(5)))
    weights = list(model.decoder.parameters())
    mean, log_var, *decoder = torch.autograd.grad(model.loss(terms, 1.0) * len(batch), [at.mean, at.log_var, *weights])
    return torch.cat([mean, log_var], -1), decoder


def test_both_gradients_have_one_expectation_and_dreg_less_variance(digits: Data):
    # Weights as unequal as those of a trained model: a decoder whose pixels depend on z.
    plain, dreg = (make(IWAE, digits, gradient=name) for name in ("reparameterised", "dreg"))
    for model in (plain, dreg):
        with torch.no_grad():
            model.decoder[0].weight.mul_(3)
    batch = copies(digits, 3_000)
    q = DiagonalGaussian(torch.full((3_000, 3), 0.2), torch.full((3_000, 3), -0.5))
    for samples in (2, 16):
        one, decoder = gradients(plain, batch, q, samples)
        two, same_decoder = gradients(dreg, batch, q, samples)
        assert all(torch.equal(*pair) for pair in zip(decoder, same_decoder, strict=True))
        error = (one.var(0) + two.var(0)).div(3_000).sqrt()
        assert ((one.mean(0) - two.mean(0)).abs() < 4.5 * error).all()
        assert (one.mean(0).abs() > 5 * error).any()
    assert (two.var(0) < 0.5 * one.var(0)).all()


# semi_amortized


def bound(model: LatentModel, batch: Batch, q: Posterior) -> Tensor:
    with torch.no_grad():
        return model.bound(batch.x, q, 300, torch.Generator().manual_seed(1))


def test_refinement_does_not_lose_and_more_steps_gain_more(digits: Data):
    batch = next(digits.test.batches(20))
    encoder = make(SemiAmortized, digits, refine_steps=1)
    with torch.no_grad():
        bounds = [bound(encoder, batch, EncoderModel.posterior(encoder, batch)).mean()]
    for steps in (1, 5, 25):
        model = make(SemiAmortized, digits, refine_steps=steps)
        bounds.append(bound(model, batch, model.infer(batch, torch.Generator().manual_seed(0))).mean())
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] + 1


class Linear(SemiAmortized):
    """x = W z + mean + noise: the ELBO's best diagonal q is known."""

    def __init__(self, config: Any, spec: Any) -> None:
        super().__init__(config, spec)
        self.decoder = nn.Sequential(nn.Linear(config.latent_dim, math.prod(spec.shape)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).reshape(*z.shape[:-1], *self.spec.shape)


def test_many_steps_find_the_best_diagonal_posterior_of_a_linear_decoder(digits: Data):
    # Rate and noise: one-sample gradients leave each row moving by about sqrt(rate / 2) around the answer.
    model = make(Linear, digits, refine_steps=600, refine_lr=0.01, sigma=2.0)
    weight, offset = model.decoder[0].weight.detach(), model.decoder[0].bias.detach()
    batch = copies(digits, 300)
    batch = batch.with_x(model.decode(torch.tensor([1.0, -2.0, 0.5])).detach().expand_as(batch.x))
    q = model.infer(batch, torch.Generator().manual_seed(0))
    precision = torch.eye(3) + weight.T @ weight / 4
    mean = torch.linalg.solve(precision, weight.T @ (batch.x[0].flatten() - offset) / 4)
    assert ((q.mean.mean(0) - mean).abs() < 5 * q.mean.std(0) / math.sqrt(300)).all()
    # The mean of log-variances lies below the logarithm of the answer by half of their own variance.
    log_var = q.log_var.mean(0) + 0.5 * q.log_var.var(0)
    torch.testing.assert_close(log_var, -precision.diag().log(), atol=0.04, rtol=0)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_the_gradient_of_training_goes_through_the_refinement(digits: Data, net: str):
    model = make(SemiAmortized, digits, refine_steps=3, refine_lr=0.02, net=net).double()
    batch = next(digits.train.batches(4))
    batch = batch.with_x(batch.x.double())

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model.loss(model.terms(batch), 1.0)

    for part in (model.encoder, model.decoder):
        parameters = list(part.parameters())
        found = torch.autograd.grad(loss(), parameters)
        step = [torch.randn_like(parameter) for parameter in parameters]
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter, change in zip(parameters, step, strict=True):
                    parameter += sign * 1e-6 * change
            slopes.append(loss().item())
            with torch.no_grad():
                for parameter, change in zip(parameters, step, strict=True):
                    parameter -= sign * 1e-6 * change
        expected = (slopes[0] - slopes[1]) / 2e-6
        got = sum((gradient * change).sum().item() for gradient, change in zip(found, step, strict=True))
        assert got == pytest.approx(expected, rel=1e-5)


def test_inference_is_the_same_with_and_without_gradients(digits: Data):
    model = make(SemiAmortized, digits, refine_steps=3)
    batch = next(digits.test.batches(5))
    torch.manual_seed(2)
    trained = model.posterior(batch)
    assert trained.mean.requires_grad
    torch.manual_seed(2)
    with torch.no_grad():
        plain = model.posterior(batch)
    assert not plain.mean.requires_grad
    assert torch.equal(plain.mean, trained.mean)
    assert torch.equal(plain.log_var, trained.log_var)
