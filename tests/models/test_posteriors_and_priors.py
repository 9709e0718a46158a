"""Families of posteriors and priors against closed forms; every pair of them in training, evaluation and serving."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.func import jacrev, vmap

from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data, DataSpec
from elbolab.evaluation import Evaluation
from elbolab.evaluation.annealing import PriorStart, annealed_estimate, bidirectional_bounds
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.inference_gap import gap
from elbolab.evaluation.representation import mutual_information, representation
from elbolab.models import MODELS
from elbolab.models.fitting import choose, fit_posterior
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import POSTERIORS, DiagonalGaussian, Posterior
from elbolab.models.posteriors.flow import CouplingFlow
from elbolab.models.posteriors.full import FullGaussian
from elbolab.models.priors import PRIORS, Prior
from elbolab.models.priors.flow import SplineFlow
from elbolab.models.priors.mixture import Mixture
from elbolab.models.priors.vamp import INSIDE, SPREAD, Vamp
from elbolab.registry.pyfunc import Served
from elbolab.support.errors import UserError
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.trainer import Event, train

B, D = 5, 3
SMALL: dict[str, Any] = {"latent_dim": D, "net": "mlp", "hidden": 16, "epochs": 2, "prior_components": 4}
PAIRS = [(posterior, prior) for posterior in POSTERIORS for prior in PRIORS]
# Each of either kind beside the plainest of the other, and both that are made of nets together.
TRAINED = [pair for pair in PAIRS if "diagonal" in pair or "normal" in pair] + [("flow", "flow"), ("full", "vamp")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(family: type[Posterior], scale: float = 1.0) -> Posterior:
    return family.from_rows(scale * torch.randn(B, family.width(D), generator=seeded(1)))


def a_prior(name: str) -> Prior:
    """A prior whose parameters are far from where they begin."""
    torch.manual_seed(3)
    prior = PRIORS[name](SimpleNamespace(latent_dim=D, prior_components=4, seed=0))
    prior.attach(LinearEncoder())
    with torch.no_grad():
        for value in prior.parameters():
            # Of a flow's nets no more: it would be far from smooth.
            value.add_((0.1 if name == "flow" else 1) * torch.randn_like(value))
    return prior.eval()


class LinearEncoder:
    """Posteriors of moderate width, linear in 12 pixels."""

    spec = DataSpec((1, 3, 4), 10, 8, 8, "")

    def __init__(self) -> None:
        self.encoder: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2 * D))

    def encode(self, x: torch.Tensor) -> Posterior:
        return DiagonalGaussian.from_rows(2 * self.encoder(x))


def reference(q: Posterior) -> Any:
    """The same distribution by torch.distributions."""
    if isinstance(q, FullGaussian):
        return MultivariateNormal(q.mean, scale_tril=q.scale_tril)
    if isinstance(q, CouplingFlow):
        return ByJacobian(q)
    assert isinstance(q, DiagonalGaussian)
    return Independent(Normal(q.mean, (0.5 * q.log_var).exp()), 1)


class ByJacobian:
    """The density of a flow at its own draws: that of the noise less log |dz / du|, by automatic differentiation."""

    def __init__(self, q: CouplingFlow) -> None:
        # A draw with equal generators is the same whatever the couplings: this recovers the noise.
        self.noise = FullGaussian.around(torch.zeros(B, D), torch.zeros(B, D)).sample(100_000, seeded())
        self.q = q

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        noise = self.noise[: len(z)]
        torch.testing.assert_close(self.q._forward(noise), z)
        rows = [
            [
                torch.linalg.slogdet(jacrev(self.q[image : image + 1]._forward)(u[None, None])[0, 0, :, 0, 0])[1]
                for u in us
            ]
            for image, us in enumerate(noise.transpose(0, 1))
        ]
        return MultivariateNormal(torch.zeros(D), torch.eye(D)).log_prob(noise) - torch.tensor(rows).T


@pytest.mark.parametrize("family", POSTERIORS.values())
def test_a_family_samples_its_density_and_has_its_moments(family: type[Posterior]):
    q = some(family)
    z = q.sample(100_000, seeded())
    torch.testing.assert_close(q.log_prob(z[:50]), reference(q).log_prob(z[:50]), rtol=1e-4, atol=1e-4)
    if isinstance(q, CouplingFlow):
        # Over fixed draws.
        assert ((z.mean(0) - q.mean).abs() < 0.1 * q.variance.sqrt()).all()
        assert ((z.var(0) / q.variance).log().abs() < 0.4).all()
    else:
        torch.testing.assert_close(q.variance, reference(q).variance)
        # Five standard errors of a mean and of a variance.
        assert ((z.mean(0) - q.mean).abs() < 5 * (q.variance / len(z)).sqrt()).all()
        assert ((z.var(0) / q.variance - 1).abs() < 5 * math.sqrt(2 / len(z))).all()
    torch.testing.assert_close(
        q.pairwise_log_prob(z[7]), q.log_prob(z[7][:, None].expand(B, B, D)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("family", POSTERIORS.values())
def test_rows_and_parts_make_the_same_posteriors_again(family: type[Posterior]):
    q = some(family)
    assert q.rows.shape == (B, family.width(D))
    assert torch.equal(family.from_rows(q.rows).rows, q.rows)
    assert torch.equal(family.cat([q[:2], q[2:]]).rows, q.rows)
    assert torch.equal(q[torch.tensor([3, 1])].mean, q.mean[[3, 1]])
    around = family.around(q.mean, q.variance.log())
    torch.testing.assert_close(around.variance, q.variance)
    torch.testing.assert_close(
        around.log_prob(q.mean[None]), DiagonalGaussian(q.mean, q.variance.log()).log_prob(q.mean[None])
    )
    assert family.of(q) is q
    other = next(each for each in POSTERIORS.values() if each is not family)
    torch.testing.assert_close(other.of(q).variance, q.variance)
    picked = choose([q, around], torch.tensor([[0.0, 1, 0, 1, 0], [1.0, 0, 1, 0, 1]]))
    assert torch.equal(picked.rows[1], q.rows[1])
    assert torch.equal(picked.rows[0], around.rows[0])


@pytest.mark.parametrize("family", POSTERIORS.values())
def test_a_family_can_be_stacked_for_several_models(family: type[Posterior]):
    rows, normal = torch.randn(4, B, family.width(D), generator=seeded()), a_prior("normal")
    z = torch.randn(2, B, D, generator=seeded(1))
    both = vmap(lambda each: family.from_rows(each).log_prob(z))(rows)
    torch.testing.assert_close(both[2], family.from_rows(rows[2]).log_prob(z), rtol=1e-4, atol=1e-3)
    assert vmap(lambda each: family.from_rows(each).kl(normal, z))(rows).shape == (4, B)


def test_a_flow_is_a_gaussian_of_full_covariance_where_its_couplings_are_zero():
    gaussian = some(FullGaussian)
    q = CouplingFlow.of(gaussian)
    z = gaussian.sample(10, seeded())
    assert torch.equal(q.sample(10, seeded()), z)
    torch.testing.assert_close(q.log_prob(z), gaussian.log_prob(z))
    torch.testing.assert_close(q.mean, gaussian.mean)
    torch.testing.assert_close(q.variance, gaussian.variance)
    assert all(
        CouplingFlow.from_rows(torch.zeros(2, CouplingFlow.width(n))).mean.shape == (2, n) for n in (1, 2, 7, 50)
    )


@pytest.mark.parametrize("family", POSTERIORS.values())
def test_the_kl_to_a_standard_normal_is_the_closed_form(family: type[Posterior]):
    q, prior = some(family), a_prior("normal")
    if isinstance(q, CouplingFlow):
        assert q.kl_standard_normal() is None
        return
    normal = MultivariateNormal(torch.zeros(D), torch.eye(D))
    whole = MultivariateNormal(q.mean, scale_tril=q.scale_tril) if isinstance(q, FullGaussian) else None
    full = whole or MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    torch.testing.assert_close(q.kl(prior), torch.distributions.kl_divergence(full, normal), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_the_kl_is_the_mean_over_samples_where_it_has_no_closed_form(posterior: str, prior: str):
    q, p = some(POSTERIORS[posterior], 0.5), a_prior(prior)
    z = q.sample(20_000, seeded())
    terms = q.log_prob(z) - p.log_prob(z)
    found = q.kl(p, z)
    assert ((found - terms.mean(0)).abs() < 5 * terms.std(0) / math.sqrt(len(z)) + 1e-4).all()
    assert (found > 0).all()
    if p.kl(q) is None:
        with pytest.raises(ValueError, match="no closed form; give samples z"):
            q.kl(p)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_samples_its_density_and_has_its_moments(name: str):
    prior = a_prior(name)
    z = prior.sample((400, 250), seeded()).flatten(0, 1)
    mean, variance = prior.moments()
    # A flow's are those of 4,096 draws.
    drawn, loose = (4096, 0.2) if name == "flow" else (len(z), 0.05)
    assert ((z.mean(0) - mean).abs() < 5 * (variance / drawn).sqrt()).all()
    assert ((z.var(0) / variance - 1).abs() < loose).all()
    # E_p[1] by draws of another density: it is normalised.
    wide = MultivariateNormal(mean, torch.diag(4 * variance))
    torch.manual_seed(0)
    drawn = wide.sample((200_000,))
    ratio = (prior.log_prob(drawn) - wide.log_prob(drawn)).exp()
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / math.sqrt(len(drawn))
    assert torch.equal(prior.sample((3,), seeded(5)), prior.sample((3,), seeded(5)))
    if isinstance(prior, Mixture):
        parts = Independent(Normal(prior.means, (0.5 * prior.log_vars).exp()), 1)
        expected = MixtureSameFamily(Categorical(logits=prior.logits), parts).log_prob(z[:20])
        torch.testing.assert_close(prior.log_prob(z[:20]), expected)
    if isinstance(prior, Vamp):
        q = prior.posteriors
        parts = Independent(Normal(q.mean, q.variance.sqrt()), 1)
        expected = MixtureSameFamily(Categorical(torch.ones(len(q))), parts).log_prob(z[:20])
        torch.testing.assert_close(prior.log_prob(z[:20]), expected)
        shaped = z[:20].view(4, 5, D)
        torch.testing.assert_close(prior.log_prob(shaped).flatten(), expected)
        assert prior.precision(shaped).shape == shaped.shape
    if isinstance(prior, SplineFlow):
        flow: Any = prior.transform
        jacobian = torch.stack([jacrev(lambda one: flow()(one[None])[0])(one) for one in z[:20]])
        normal = MultivariateNormal(torch.zeros(D), torch.eye(D)).log_prob(flow()(z[:20]))
        expected = normal + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(prior.log_prob(z[:20]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vamp", "flow"])
def test_what_a_prior_remembers_is_made_anew_when_its_weights_have_changed(name: str):
    prior, z = a_prior(name), torch.randn(6, D, generator=seeded())
    before, moments = prior.log_prob(z), prior.moments()[0].clone()
    assert prior.moments()[0].equal(moments)
    for value in prior.parameters():
        with torch.no_grad():
            value.mul_(0.5)
    assert not prior.log_prob(z).equal(before)
    assert not prior.moments()[0].equal(moments)
    if isinstance(prior, Vamp):
        # The encoder's weights are not its own, but it is made of them.
        with torch.no_grad():
            now = prior.log_prob(z)
            next(iter(prior._encoder_weights())).mul_(0.5)
        assert not prior.log_prob(z).equal(now)
        assert {key for key, _ in prior.named_parameters()} == {"pseudo_inputs"}


@pytest.mark.parametrize("name", ["vamp", "flow"])
def test_what_a_prior_remembers_is_made_anew_after_a_step_of_training(name: str, digits: Data):
    kind = MODELS["vae"]
    model = kind(kind.Config.parse({**SMALL, "prior": name}), digits.spec)
    model.prepare(digits)
    assert isinstance(model, LatentModel)
    z, found = torch.randn(5, D, generator=seeded()), []
    for _ in range(2):
        model.eval()
        found.append((model.prior.log_prob(z), model.prior.moments()[0]))
        model.train()
        # A fused step changes weights without a change of their version.
        model.loss(model.terms(next(digits.train.batches(12))), 1.0).backward()
        model.optimizers()[0].step()
    for before, after in zip(*found, strict=True):
        assert not before.equal(after)


def test_pseudo_inputs_begin_near_the_mean_image_and_move(digits: Data, tmp_path: Path):
    kind = MODELS["vae"]
    model = kind(kind.Config.parse({**SMALL, "prior": "vamp"}), digits.spec)
    model.prepare(digits)
    assert isinstance(model, LatentModel)
    assert isinstance(model.prior, Vamp)
    first = model.prior.pseudo_inputs.detach().clone()
    mean = (digits.train.images / 255).mean(0).clamp(INSIDE, 1 - INSIDE)
    # Equal ones would stay equal.
    assert ((first - mean).std() / SPREAD - 1).abs() < 0.1
    # At the ends of the range there is no gradient.
    assert (first > 0).all()
    assert (first < 1).all()
    trained_model, _ = trained("vae", digits, tmp_path, prior="vamp", pca_epochs=0)
    assert isinstance(trained_model.prior, Vamp)
    assert (trained_model.prior.pseudo_inputs != first).float().mean() > 0.9


def test_a_model_without_an_encoder_has_no_vamp_prior_and_says_why():
    for name in ("latent_opt", "ppca"):
        with pytest.raises(UserError, match=r"no encoder; choose one of normal, mixture, flow|should be 'normal'"):
            MODELS[name].Config.parse({"prior": "vamp"})


def linear_mixture() -> tuple[LatentModel, Prior]:
    """A linear decoder under a mixture prior: p(x) is a mixture of Gaussians in closed form."""
    model = MODELS["ppca"](MODELS["ppca"].Config.parse({"latent_dim": D}), DataSpec((1, 3, 4), 10, 8, 8, ""))
    assert isinstance(model, LatentModel)
    model.loadings = torch.randn(12, D, generator=seeded(2)) * 0.5
    model.prior = a_prior("mixture")
    return model, model.prior


def exact_log_px(model: Any, prior: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        noise = model.config.sigma**2 * torch.eye(12)
        means = prior.means @ model.loadings.T + model.mean
        covariances = (model.loadings * prior.log_vars.exp()[:, None]) @ model.loadings.T + noise
        parts = MultivariateNormal(means, covariances)
        return MixtureSameFamily(Categorical(logits=prior.logits), parts).log_prob(x.flatten(1))


def test_annealing_and_bounds_from_both_sides_hold_under_a_mixture_prior():
    model, prior = linear_mixture()
    z = prior.sample((24,), seeded())
    with torch.no_grad():
        x = model.likelihood.sample(model.decode(z), seeded(1))
    exact = exact_log_px(model, prior, x)
    start = PriorStart(prior, len(x))
    config = EvaluateConfig(ais_chains=16, ais_distributions=100, ais_leapfrog=5)
    found = annealed_estimate(model, x, start, config, seeded(2))
    assert abs((found.log_px - exact).mean()) < 4 * found.std_err.square().mean().sqrt() / math.sqrt(len(x)) + 0.01
    few = EvaluateConfig(ais_chains=4, ais_distributions=20, ais_leapfrog=5)
    lower, upper = bidirectional_bounds(model, x, z, start, few, seeded(3))
    assert lower.mean() < exact.mean() < upper.mean()
    # Importance sampling from a wide Gaussian finds the same.
    mean, variance = (value.expand(8, -1) for value in prior.moments())
    plain = importance_estimate(model, x[:8], DiagonalGaussian(mean, variance.log()), 100_000, seeded(4))
    error = plain.log_px.float() - exact[:8]
    assert (error.abs() < 4 * plain.std_err.float() + 0.01).all()


class Banana:
    """z1 ~ N(0, 1), z2 | z1 ~ N(z1^2, 1/4): a posterior that is known, with log p(x) = 0."""

    as_in_training = staticmethod(nullcontext)

    def bound(self, x: torch.Tensor, q: Posterior, samples: int, generator: torch.Generator) -> torch.Tensor:
        z = q.sample(samples, generator)
        log_joint = Normal(0, 1).log_prob(z[..., 0]) + Normal(z[..., 0].square(), 0.5).log_prob(z[..., 1])
        return (log_joint - q.log_prob(z)).mean(0)


def test_a_search_in_a_wider_family_comes_closer_to_the_posterior():
    model, bounds = Banana(), {}
    for name, family in POSTERIORS.items():
        start = family.around(torch.zeros(8, 2), torch.zeros(8, 2))
        q = fit_posterior(model, torch.zeros(8), start, 1500, 0.03, 30, seeded(1))  # pyright: ignore
        bounds[name] = model.bound(torch.zeros(8), q, 4000, seeded(2)).mean().item()
    # No correlation: both Gaussians end at KL(q || p) of about 0.6.
    assert bounds["diagonal"] < -0.4
    assert bounds["full"] > bounds["diagonal"] - 0.02
    assert -0.1 < bounds["flow"] < 0.01


def test_a_fit_finds_the_posterior_under_a_mixture_of_one_component():
    """One component is a Gaussian prior N(m, v): with it the exact posterior of a linear decoder is known."""
    model, _ = linear_mixture()
    model.prior = prior = Mixture(SimpleNamespace(latent_dim=D, prior_components=1))
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[1.0, -1.0, 0.5]]))
        prior.log_vars.copy_(torch.tensor([[0.3, -0.5, 0.0]]))
    x = torch.rand(4, 1, 3, 4, generator=seeded())
    precision = model.loadings.T @ model.loadings / model.config.sigma**2 + torch.diag((-prior.log_vars[0]).exp())  # pyright: ignore
    shift = (x.flatten(1) - model.mean) @ model.loadings / model.config.sigma**2  # pyright: ignore
    expected = (shift + prior.means[0] * (-prior.log_vars[0]).exp()) @ torch.linalg.inv(precision)
    start = FullGaussian.around(torch.zeros(4, D), torch.zeros(4, D))
    q = fit_posterior(model, x, start, 600, 0.05, 50, seeded(1))
    torch.testing.assert_close(q.mean, expected.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(q.variance, torch.linalg.inv(precision).diagonal().expand(4, D), atol=0.02, rtol=0.1)


@pytest.mark.parametrize("family", POSTERIORS.values())
def test_mutual_information_of_far_posteriors_is_the_logarithm_of_their_number(family: type[Posterior]):
    q = family.around(20.0 * torch.arange(6)[:, None].expand(6, D), torch.zeros(6, D))
    assert mutual_information(q, 3, seeded()) == pytest.approx(math.log(6), abs=1e-6)
    same = family.around(torch.zeros(6, D), torch.zeros(6, D))
    assert mutual_information(same, 3, seeded()) == pytest.approx(0, abs=1e-6)


def trained(name: str, data: Data, folder: Path, **fields: Any) -> tuple[LatentModel, list[Event]]:
    kind = MODELS[name]
    config = kind.Config.parse(
        {key: value for key, value in {**SMALL, **fields}.items() if key in kind.Config.model_fields}
    )
    torch.manual_seed(config.seed)
    model, events = kind(config, data.spec), []
    train(model, data, events.append, folder)
    loaded = load_checkpoint(folder / "best.safetensors")
    assert isinstance(loaded, LatentModel)
    return loaded, events


@pytest.mark.parametrize(("posterior", "prior"), TRAINED)
@pytest.mark.parametrize("name", ["vae", "iwae", "semi_amortized", "latent_opt"])
def test_every_model_takes_every_family_and_prior(name: str, posterior: str, prior: str, digits: Data, tmp_path: Path):
    if name == "latent_opt" and PRIORS[prior].needs_encoder:
        pytest.skip("latent_opt has no encoder, of which such a prior is made")
    model, events = trained(name, digits, tmp_path, posterior=posterior, prior=prior, fit_steps=10, epochs=15)
    assert events[-1].metrics["val/elbo"] > events[0].metrics["val/elbo"]
    batch = digits.test.batch(torch.arange(4))
    q = model.infer(batch, seeded())
    assert isinstance(q, POSTERIORS[posterior])
    assert isinstance(model.prior, PRIORS[prior])
    # The ELBO that training logs is the mean log weight, on average.
    terms = model.terms_at(batch, q, z := q.sample(3000, seeded(1)))
    torch.testing.assert_close(terms.log_px_z.mean(0) - q.kl(model.prior, z), terms.log_w.mean(0), atol=0.5, rtol=0.02)
    if prior == "mixture":
        # Its parameters are trained with the decoder.
        torch.manual_seed(0)
        assert all(not torch.equal(value, torch.zeros_like(value)) for value in model.prior.state_dict().values())
    config = EvaluateConfig(images=10, samples=20, gap_images=2, ais_chains=2, ais_distributions=3, local_steps=3)
    evaluation = Evaluation(model, digits, config)
    results = representation(evaluation) | gap(evaluation)
    found = results.metrics
    # The estimate says whether it is one, and has its error.
    closed = prior == "normal" and posterior != "flow"
    assert results.tags["evaluation.rate"] == ("closed form" if closed else "10 samples an image")
    assert found["test/rate_se"] > 0
    assert all(math.isfinite(value) for value in found.values())
    assert found["test/amortization_gap"] > -0.5
    assert -(found["test/rate"] + found["test/distortion"]) == pytest.approx(_elbo(model, evaluation), abs=3)


def _elbo(model: LatentModel, evaluation: Evaluation) -> float:
    pairs = zip(evaluation.batches("test"), evaluation.inferred("test"), strict=True)
    return torch.cat([model.bound(batch.x, q, 50, seeded()) for batch, q in pairs]).mean().item()


def test_a_learned_prior_and_a_full_covariance_do_not_lose(digits: Data, tmp_path: Path):
    """On images that are learnt by heart the training ELBO of the wider choice is not below."""
    ends = {}
    for posterior, prior in (
        ("diagonal", "normal"),
        ("full", "normal"),
        ("flow", "normal"),
        ("diagonal", "mixture"),
        ("diagonal", "flow"),
    ):
        fields = {"posterior": posterior, "prior": prior, "epochs": 25, "hidden": 32}
        (folder := tmp_path / f"{posterior}-{prior}").mkdir()
        _, events = trained("latent_opt", digits, folder, **fields)
        ends[posterior, prior] = np.mean([event.metrics["train/elbo"] for event in events[-5:]])
    assert ends["full", "normal"] > ends["diagonal", "normal"] - 1
    assert ends["flow", "normal"] > ends["diagonal", "normal"] - 1
    assert ends["diagonal", "mixture"] > ends["diagonal", "normal"] - 1
    assert ends["diagonal", "flow"] > ends["diagonal", "normal"] - 1


@pytest.mark.parametrize(("posterior", "prior"), TRAINED)
def test_a_served_model_says_its_posterior_and_draws_from_its_prior(
    posterior: str, prior: str, digits: Data, tmp_path: Path
):
    model, _ = trained("vae", digits, tmp_path, posterior=posterior, prior=prior)
    assert ("zuko" in model.requirements) == ("flow" in (posterior, prior))
    served = Served()
    served.model = model
    images = digits.test.images[:3].permute(0, 2, 3, 1).numpy()
    found = served.predict(None, images, {"op": "encode"})
    q = model.infer(digits.test.batch(torch.arange(3)))
    assert isinstance(found, dict)
    assert found.keys() == q.parameters.keys()
    for name, value in q.parameters.items():
        np.testing.assert_array_equal(found[name], value)
    drawn = served.predict(None, images, {"op": "sample", "n": 4, "seed": 9})
    assert isinstance(drawn, np.ndarray)
    expected = model.expected(model.prior.sample((4,), seeded(9)))
    np.testing.assert_allclose(drawn, expected.permute(0, 2, 3, 1), atol=1e-6)


def test_a_start_must_have_the_prior_and_an_encoder_the_family(digits: Data, tmp_path: Path):
    source, _ = trained("vae", digits, tmp_path, posterior="full", prior="mixture")
    kind = MODELS["vae"]
    alike = kind(kind.Config.parse({**SMALL, "posterior": "full", "prior": "mixture", "start": "run"}), digits.spec)
    alike.start_from("start", source)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in alike.state_dict().items())
    for fields, said in (({"prior": "mixture"}, "posterior"), ({"posterior": "full"}, "prior")):
        other = kind(kind.Config.parse({**SMALL, "start": "run", **fields}), digits.spec)
        with pytest.raises(UserError, match=f"has {said} "):
            other.start_from("start", source)
    # Rows may start from an encoder of another family: with its means and variances.
    table_kind = MODELS["latent_opt"]
    table = table_kind(
        table_kind.Config.parse({**SMALL, "latent_init": "encoder:run", "prior": "mixture"}), digits.spec
    )
    table.start_from("latent_init", source)
    table.prepare(digits)
    assert isinstance(table, LatentModel)
    batch = digits.train.batch(torch.arange(4))
    torch.testing.assert_close(table.posterior(batch).mean, source.infer(batch).mean)
    torch.testing.assert_close(table.posterior(batch).variance, source.infer(batch).variance)


def test_ppca_has_the_only_prior_and_family_of_which_its_closed_form_is_known():
    for fields in ({"prior": "mixture"}, {"posterior": "full"}):
        with pytest.raises(UserError, match="should be"):
            MODELS["ppca"].Config.parse(fields)
    with pytest.raises(UserError, match="'normal', 'mixture', 'vamp' or 'flow'"):
        MODELS["vae"].Config.parse({"prior": "laplace"})
    with pytest.raises(UserError, match=r"posterior='full' at latent_dim=10000 takes 50,015,000 numbers an image"):
        MODELS["vae"].Config.parse({"posterior": "full", "latent_dim": 10_000})
    assert set(MODELS["vae"].Config.search_range("posterior").choices) == set(POSTERIORS)  # pyright: ignore
