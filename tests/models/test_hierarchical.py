"""What the model of two layers does beside what every model must: joint densities in closed form, bounds, layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from elbolab.config.schema import EvaluateConfig
from elbolab.data.batches import Batch, Data
from elbolab.evaluation.importance_sampling import importance_estimate, log_weights
from elbolab.evaluation.inference_gap import best_of_family
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.models.hierarchical import SHARED, Hierarchical
from elbolab.models.objectives import elbo, iw_bound
from elbolab.models.posteriors.hierarchical import ConditionalGaussian, HierarchicalPosterior
from elbolab.models.priors.hierarchical import HierarchicalPrior
from elbolab.models.vae import VAE
from elbolab.support.errors import UserError

D1, D2, B = 2, 1, 3
TINY: dict[str, Any] = {"latent_dim": D1 + D2, "top_dim": D2, "net": "mlp", "hidden": 16, "activation": "tanh"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(data: Data, kind: Any = Hierarchical, **fields: Any) -> Any:
    torch.manual_seed(0)
    given = {key: value for key, value in {**TINY, **fields}.items() if key in kind.Config.model_fields}
    return kind(kind.Config.parse(given), data.spec)


def linear(link: ConditionalGaussian, matrix: Tensor, offset: Tensor, log_var: float) -> None:
    """Make it N(matrix h + offset, exp(log_var) I)."""
    outputs, inputs = matrix.shape
    link.net = nn.Sequential(nn.Linear(inputs, 2 * outputs))
    with torch.no_grad():
        link.net[0].weight.copy_(torch.cat([matrix, torch.zeros_like(matrix)]))  # pyright: ignore
        link.net[0].bias.copy_(torch.cat([offset, torch.full_like(offset, log_var)]))  # pyright: ignore


UP, DOWN = torch.tensor([[0.8], [-0.5]]), torch.tensor([[0.6, -0.4]])
UP_OFFSET, DOWN_OFFSET = torch.tensor([0.3, -0.2]), torch.tensor([0.1])
UP_LOG_VAR, DOWN_LOG_VAR = -0.7, -1.1
LOADINGS = 0.05 * torch.randn(28 * 28, D1, generator=seeded())


def joint(mean1: Tensor, cov1: Tensor, matrix: Tensor, offset: Tensor, log_var: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (a, b) with a ~ N(mean1, cov1) and b given a ~ N(matrix a + offset, exp(log_var) I)."""
    cross = cov1 @ matrix.T
    cov2 = matrix @ cross + torch.eye(len(matrix)) * torch.tensor(log_var).exp()
    mean = torch.cat([mean1, matrix @ mean1 + offset])
    return mean, torch.cat([torch.cat([cov1, cross], 1), torch.cat([cross.T, cov2], 1)])


def prior_joint() -> MultivariateNormal:
    mean, cov = joint(torch.zeros(D2), torch.eye(D2), UP, UP_OFFSET, UP_LOG_VAR)
    order = [*range(D2, D1 + D2), *range(D2)]
    return MultivariateNormal(mean[order], cov[order][:, order])


def posterior_joint(q: HierarchicalPosterior, image: int) -> MultivariateNormal:
    first = q.first_mean[image], q.first_log_var[image].exp().diag()
    return MultivariateNormal(*joint(*first, DOWN, DOWN_OFFSET, DOWN_LOG_VAR))


@pytest.fixture
def gaussian(digits: Data) -> Hierarchical:
    """A model of linear maps alone, of which all is known in closed form."""
    model = make(digits, sigma=1.0)
    linear(model.prior.first, UP, UP_OFFSET, UP_LOG_VAR)
    linear(model.top_encoder, DOWN, DOWN_OFFSET, DOWN_LOG_VAR)
    # Its mean is the sigmoid of what a decoder gives.
    model.decode = lambda z: (z[..., :D1] @ LOADINGS.T).reshape(*z.shape[:-1], 1, 28, 28)
    return model.eval()


@pytest.fixture
def q(gaussian: Hierarchical) -> HierarchicalPosterior:
    rows = torch.randn(2, B, D1, generator=seeded(1))
    return HierarchicalPosterior(rows[0], rows[1], gaussian.top_encoder).detach()


def exact_log_px(x: Tensor) -> Tensor:
    """log N(x; W m, W C W' + I) with m and C of z1 under the prior, in double precision."""
    prior, weight = prior_joint(), LOADINGS.double()
    mean, cov = prior.mean[:D1].double(), prior.covariance_matrix[:D1, :D1].double()
    density = MultivariateNormal(weight @ mean, weight @ cov @ weight.T + torch.eye(len(weight)).double())
    return density.log_prob(x.flatten(1).double()).detach()


# Closed forms


@torch.no_grad()
def test_the_prior_is_the_joint_gaussian_of_its_linear_maps(gaussian: Hierarchical):
    exact, prior = prior_joint(), gaussian.prior
    z = prior.sample((20_000,), seeded())
    torch.testing.assert_close(prior.log_prob(z), exact.log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.T.cov(), exact.covariance_matrix, atol=0.05, rtol=0.05)
    mean, variance = prior.moments()
    torch.testing.assert_close(mean, exact.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance, exact.variance, atol=0.02, rtol=0.02)
    torch.testing.assert_close(prior.precision(z), torch.tensor([2.01375, 2.01375, 1.0]).expand_as(z))


@torch.no_grad()
def test_the_posterior_is_the_joint_gaussian_of_its_linear_maps(q: HierarchicalPosterior):
    z, mean, variance = q.sample(20_000, seeded()), q.mean, q.variance
    for image in range(B):
        exact = posterior_joint(q, image)
        torch.testing.assert_close(q.log_prob(z)[:, image], exact.log_prob(z[:, image]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(z[:, image].T.cov(), exact.covariance_matrix, atol=0.08, rtol=0.08)
        torch.testing.assert_close(mean[image], exact.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(variance[image], exact.variance, atol=0.05, rtol=0.25)


@torch.no_grad()
def test_the_kl_of_samples_is_that_of_the_joint_gaussians(gaussian: Hierarchical, q: HierarchicalPosterior):
    count = 40_000
    z = q.sample(count, seeded())
    ratio = q.log_prob(z) - gaussian.prior.log_prob(z)
    exact = torch.stack([kl_divergence(posterior_joint(q, image), prior_joint()) for image in range(B)])
    assert ((q.kl(gaussian.prior, z) - exact).abs() < 5 * ratio.std(0) / count**0.5).all()


@torch.no_grad()
def test_importance_weights_and_the_quoted_estimate_find_the_exact_marginal(gaussian: Hierarchical, digits: Data):
    batch = digits.test.batch(torch.arange(8))
    own, exact = gaussian.infer(batch), exact_log_px(batch.x)
    sampled = importance_estimate(gaussian, batch.x, own, 50_000, seeded())
    assert ((sampled.log_px - exact).abs() < 5 * sampled.std_err + 1e-3).all()
    assert (log_weights(gaussian, batch.x, own, 500, seeded()).mean(0) < exact).all()
    quoted = estimate_log_px(gaussian, batch.x, own, EvaluateConfig(), seeded())
    assert ((quoted.log_px - exact).abs() < 5 * quoted.std_err + 1e-3).all()
    assert not quoted.unreliable.any()


@torch.no_grad()
def test_annealing_agrees_with_many_samples_where_nothing_is_linear(digits: Data):
    model = make(digits, likelihood="bernoulli").eval()
    for parameter in [*model.prior.parameters(), *model.decoder.parameters()]:
        parameter.mul_(2)
    z = model.prior.sample((6,), seeded(2))
    x = model.likelihood.sample(model.decode(z), seeded(3))
    nothing = torch.zeros(6, dtype=torch.int64)
    own = model.infer(Batch(x, nothing, nothing, "simulated", ""))
    config = EvaluateConfig(samples=1000)
    many = importance_estimate(model, x, own, 50_000, seeded())
    quoted = estimate_log_px(model, x, own, config, seeded(), known=z)
    error = (many.std_err.square() + quoted.std_err.square()).sqrt()
    assert ((many.log_px - quoted.log_px).abs() < 5 * error + 1e-3).all()
    assert quoted.upper.mean() > quoted.log_px.mean() - 0.05


@torch.no_grad()
def test_an_upper_layer_without_effect_leaves_the_log_px_of_one_layer(digits: Data):
    model, flat = make(digits).eval(), make(digits, VAE, latent_dim=D1).eval()
    linear(model.prior.first, torch.zeros(D1, D2), torch.zeros(D1), 0.0)
    flat.decoder.load_state_dict(model.decoder.state_dict())
    batch = digits.test.batch(torch.arange(6))
    one, other = (
        estimate_log_px(each, batch.x, each.infer(batch), EvaluateConfig(), seeded()) for each in (model, flat)
    )
    error = (one.std_err.square() + other.std_err.square()).sqrt()
    assert ((one.log_px - other.log_px).abs() < 5 * error + 1e-3).all()


# Objectives


@torch.no_grad()
def test_the_bound_of_several_samples_is_above_the_elbo_and_of_one_the_same(digits: Data):
    model = make(digits)
    batch = digits.train.batch(torch.zeros(2000, dtype=torch.int64))
    several, one = model.terms(batch, 10, seeded()), model.terms(batch, 1, seeded())
    assert iw_bound(several).mean() > elbo(several).mean()
    torch.testing.assert_close(model.loss(one, 1.0), -elbo(one).mean())
    weighted = (0.3 * one.kl - one.log_px_z.mean(0)).mean()
    torch.testing.assert_close(model.loss(one, 0.3), weighted)


def test_both_gradients_have_one_expectation(digits: Data):
    batch, found = digits.train.batch(torch.zeros(4000, dtype=torch.int64)), {}
    for name in ("reparameterised", "dreg"):
        model = make(digits, gradient=name, iw_samples=4, beta_warmup=0)
        with torch.no_grad():
            model.decoder[0].weight.mul_(3)
        for seed in range(5):
            model.loss(model.terms(batch, 4, seeded(seed)), 1.0).backward()
        nets = model.encoder, model.top_encoder, model.decoder, model.prior
        found[name] = [torch.cat([one.grad.flatten() for one in net.parameters()]) for net in nets]
    for plain, dreg in zip(found["reparameterised"][:2], found["dreg"][:2], strict=True):
        assert torch.cosine_similarity(plain, dreg, dim=0) > 0.95
        assert 0.9 < plain.norm() / dreg.norm() < 1.1
    for plain, dreg in zip(found["reparameterised"][2:], found["dreg"][2:], strict=True):
        torch.testing.assert_close(plain, dreg, rtol=1e-4, atol=1e-5)


def test_the_first_epochs_draw_from_a_ppca_of_two_layers_and_teach_every_net(digits: Data):
    model = make(digits, latent_dim=5, top_dim=2, pca_epochs=1).train()
    model.prepare(digits)
    model.begin_epoch(1)
    batch = digits.train.batch(torch.zeros(20_000, dtype=torch.int64))
    q = model.pca_posterior(batch)
    z = q.sample(1, seeded())[0]
    mean, variance = SHARED**0.5 * q.first_mean[0, :2], SHARED * q.first_log_var[0, :2].exp() + 1 - SHARED
    torch.testing.assert_close(z[:, 3:].mean(0), mean, atol=0.03, rtol=0.03)
    torch.testing.assert_close(z[:, 3:].var(0), variance, atol=0.03, rtol=0.05)
    few = next(digits.train.batches(20))
    model.loss(model.terms(few), 1.0).backward()
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())


def test_a_start_with_an_upper_layer_wider_than_the_lower_is_standard_normal_beyond_it(digits: Data):
    model = make(digits, latent_dim=5, top_dim=3)
    top = model._linear_top(torch.ones(1, 2))
    torch.testing.assert_close(top.mean, SHARED**0.5 * torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(top.variance, torch.tensor([[1 - SHARED, 1 - SHARED, 1.0]]))


# The layers and the rest of the suite


@torch.no_grad()
def test_densities_of_all_pairs_are_those_of_one_after_another(q: HierarchicalPosterior):
    z = q.sample(2, seeded()).flatten(0, 1).double()
    exact = q.double()
    each = torch.stack([exact.log_prob(one.expand(1, B, -1))[0] for one in z])
    torch.testing.assert_close(exact.pairwise_log_prob(z), each, rtol=1e-4, atol=1e-4)


def test_a_better_posterior_of_the_family_keeps_the_upper_layers(digits: Data):
    model = make(digits).eval()
    batch = digits.test.batch(torch.arange(4))
    own = model.infer(batch)
    mean, variance = (value.expand_as(own.mean) for value in model.prior.moments())
    config = EvaluateConfig(samples=500, local_steps=100)
    best = best_of_family(model, batch.x, [own, own.like(mean, variance.log())], config, seeded(), known=[own])
    assert isinstance(best, HierarchicalPosterior)
    z1 = best.sample(5, seeded())[..., :D1]
    torch.testing.assert_close(best.top(z1).mean, own.top(z1).mean)
    gain = [log_weights(model, batch.x, each, 500, seeded()).mean() for each in (best, own)]
    assert gain[0] > gain[1]


def test_the_decoder_and_its_layers_read_the_lower_one_alone(digits: Data):
    model = make(digits).eval()
    z = torch.randn(4, D1 + D2, generator=seeded())
    other = torch.cat([z[:, :D1], z[:, D1:] + 5], -1)
    assert torch.equal(model.decode(z), model.decode(other))
    assert model.layers is not None
    torch.testing.assert_close(model.layers(z).clamp(0, 1), model.expected(z))


def test_moments_of_an_image_do_not_depend_on_its_batch(digits: Data):
    model = make(digits).eval()
    whole = model.infer(digits.test.batch(torch.arange(8)))
    torch.testing.assert_close(whole[3:5].mean, whole.mean[3:5])
    torch.testing.assert_close(whole[3:5].variance, whole.variance[3:5])


def test_a_third_of_the_dimensions_are_the_upper_layers_by_default(digits: Data):
    config = Hierarchical.Config.parse({"latent_dim": 150})
    assert config.latent_dim - config.decoded_dim == 50  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(make(digits).prior, HierarchicalPrior)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 20, "top_dim": 20}, "top_dim=20 must be below latent_dim=20, which counts both layers; lower"),
        ({"latent_dim": 1}, "latent_dim=1: should be greater than 1"),
        ({"gradient": "dreg"}, "gradient='dreg' is of the bound at beta=1, but beta=1 and beta_warmup=5; set"),
        ({"prior": "normal"}, "prior"),
        ({"posterior": "full"}, "posterior"),
    ],
)
def test_what_the_layers_do_not_allow_is_one_line(fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as told:
        Hierarchical.Config.parse(fields)
    assert "\n" not in str(told.value)


def test_a_start_from_a_run_needs_the_same_layers(digits: Data):
    source = make(digits)
    same, other = make(digits, start="run"), make(digits, start="run", top_hidden=7)
    same.start_from("start", source)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in same.state_dict().items())
    with pytest.raises(UserError, match="has top_hidden 100, but this model has 7"):
        other.start_from("start", source)
    with pytest.raises(UserError, match="has prior"):
        make(digits, start="run").start_from("start", make(digits, VAE))


def test_a_posterior_cannot_be_made_of_rows_alone():
    with pytest.raises(TypeError, match="a net beside its rows"):
        HierarchicalPosterior.from_rows(torch.zeros(2, 4))
