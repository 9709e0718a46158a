"""The first epochs of a model with an encoder: a PPCA's posteriors, from which both nets learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from elbolab.data.splits import Data, load_data
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.models.objectives import beta_loss, iw_bound
from elbolab.models.posteriors import DiagonalGaussian
from elbolab.models.ppca import PPCA, PPCAConfig, fit_ppca
from elbolab.testing.models import make_model, run

ENCODERS = {
    "vae": {"pca_epochs": 1},
    "iwae": {"pca_epochs": 1, "iw_samples": 3},
    "semi_amortized": {"pca_epochs": 1, "refine_steps": 1},
}


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest, digits: Data) -> Any:
    torch.manual_seed(0)
    made = make_model(MODELS[request.param], digits, **ENCODERS[request.param])
    made.prepare(digits)
    return made.train()


def exact(model: LatentModel, data: Data) -> PPCA:
    """The ppca of the same data, whose posterior is exact."""
    ppca = PPCA(PPCAConfig(latent_dim=model.config.latent_dim, sigma=model.config.sigma), data.spec)
    ppca.prepare(data)
    return ppca


def gradients(model: LatentModel, loss: torch.Tensor, net: str) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.get_submodule(net).parameters()), retain_graph=True))


def test_the_first_epochs_draw_from_the_exact_posterior_of_a_ppca(model: Any, digits: Data):
    batch = next(digits.train.batches(20))
    model.begin_epoch(1)
    torch.manual_seed(1)
    terms = model.terms(batch, 3)
    q = exact(model, digits).posterior(batch)
    torch.manual_seed(1)
    z = q.sample(3)
    torch.testing.assert_close(terms.log_qz, q.log_prob(z))
    torch.testing.assert_close(terms.log_pz, model.prior.log_prob(z))
    torch.testing.assert_close(terms.kl, q.kl_standard_normal())


def test_their_loss_is_that_of_the_decoder_and_that_of_the_encoder_each_with_its_own_gradient(model: Any, digits: Data):
    batch = next(digits.train.batches(20))
    model.begin_epoch(1)
    torch.manual_seed(1)
    terms = model.terms(batch)
    loss = model.loss(terms, 1.0)
    torch.manual_seed(1)
    z = exact(model, digits).posterior(batch).sample(1)
    # Of the encoder alone: no refinement, and nothing through the decoder.
    nll = -model.encode(batch.x).log_prob(z).mean()
    torch.testing.assert_close(loss, nll - terms.log_px_z.mean())
    for own, expected in (("decoder", -terms.log_px_z.mean()), ("encoder", nll)):
        for got, wanted in zip(gradients(model, loss, own), gradients(model, expected, own), strict=True):
            torch.testing.assert_close(got, wanted)


def test_later_epochs_and_validation_have_the_models_own_posterior(model: Any, digits: Data):
    batch = next(digits.train.batches(20))
    model.begin_epoch(2)
    terms = model.terms(batch, model.train_samples)
    own = -iw_bound(terms).mean() if type(model).__name__ == "IWAE" else beta_loss(terms, 1.0)
    assert "encoder_nll" not in terms.also
    torch.testing.assert_close(model.loss(terms, 1.0), own)
    model.eval().begin_epoch(1)
    assert "encoder_nll" not in model.terms(batch).also


def test_without_an_epoch_of_it_and_from_a_trained_run_nothing_differs(digits: Data):
    kind = MODELS["vae"]
    assert make_model(kind, digits, start="run").config.epochs_from_pca == 0
    model = make_model(kind, digits, pca_epochs=0).train()
    model.begin_epoch(1)
    assert "encoder_nll" not in model.terms(next(digits.train.batches(20))).also


def test_an_encoder_learns_a_ppcas_posterior(tmp_path: Path):
    data = load_data("mnist5k", Path(), train_size=600, val_size=20, test_size=20)
    start: dict[str, Any] = {"latent_dim": 8, "net": "mlp", "epochs": 30, "schedule": "constant", "batch_size": 32}
    models = [make_model(MODELS["vae"], data, pca_epochs=epochs, **start) for epochs in (30, 0)]
    batch = data.val.batch(torch.arange(20))
    apart = []
    for model in models:
        assert isinstance(model, LatentModel)
        run(model, data, tmp_path)
        q, target = model.eval().infer(batch), exact(model, data).posterior(batch)
        assert isinstance(q, DiagonalGaussian)
        apart.append(((q.mean - target.mean).square() / target.variance).mean().item())
    # In units of its own variance, of images that neither saw.
    assert apart[0] < 1.5 < apart[1] / 10


def test_with_it_a_vae_is_better_after_as_many_epochs(tmp_path: Path):
    data = load_data("mnist5k", Path(), train_size=600, val_size=100, test_size=20)
    scores = []
    for epochs in (3, 0):
        model = make_model(MODELS["vae"], data, net="mlp", epochs=12, latent_dim=50, batch_size=32, pca_epochs=epochs)
        scores.append(max(event.metrics["val/elbo"] for event in run(model, data, tmp_path)))
    assert scores[0] > scores[1] + 3


def test_more_latent_dimensions_than_pixels_have_the_priors_posterior():
    x = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    mean, loadings, sigma = fit_ppca(x, 9, 0.1)
    assert mean.shape == (6,)
    assert loadings.shape == (6, 9)
    assert sigma == 0.1
    assert not loadings[:, 6:].any()
