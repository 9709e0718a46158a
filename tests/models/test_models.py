"""Conformance: what every model of MODELS must do. A new model joins by its line there."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbolab.config.schema import Config
from elbolab.data.splits import Data, load_data
from elbolab.models import MODELS
from elbolab.models import base as contract
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.models.latent_opt import RowAdam
from elbolab.models.networks import ACTIVATIONS, ToImage
from elbolab.models.objectives import elbo
from elbolab.models.posteriors import Posterior
from elbolab.support.errors import UserError
from elbolab.testing.models import LatentModelTests, ModelTests, make_model, run
from elbolab.training.backend import Backend, Objective, Step
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.pictures import take_pictures
from elbolab.training.schedule import rate_factor

# Each sample of the bound and each step of the refinement costs about as much as a step of a vae.
QUICK: dict[str, dict[str, Any]] = {
    "iwae": {"iw_samples": 2, "net": "mlp"},
    "hierarchical": {"net": "mlp"},
    "semi_amortized": {"refine_steps": 1, "net": "mlp"},
    "latent_opt": {"fit_steps": 5},
}
LATENT = [name for name, kind in MODELS.items() if issubclass(kind, LatentModel)]


def test_a_run_is_tagged_with_its_prior_posterior_and_inference(digits: Data) -> None:
    found = {name: make_model(MODELS[name], digits, **QUICK.get(name, {})).axes for name in MODELS}
    assert found["cnn"] == {}
    assert found["vae"] == {"prior": "normal", "posterior": "diagonal", "inference": "encoder"}
    assert {name: found[name]["inference"] for name in LATENT} == {
        "vae": "encoder",
        "iwae": "encoder",
        "hierarchical": "encoder",
        "semi_amortized": "refined",
        "latent_opt": "fitted",
        "ppca": "exact",
    }


class TestClassifiers(ModelTests):
    @pytest.fixture(params=[name for name in MODELS if name not in LATENT])
    def model_class(self, request: pytest.FixtureRequest) -> type[Model]:
        return MODELS[request.param]

    def check_learnt(self, first: dict[str, float], last: dict[str, float]) -> None:
        assert last["train/accuracy"] == 1


class TestLatentModels(LatentModelTests):
    untrained = ("val_rows",)

    @pytest.fixture(params=LATENT)
    def name(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture
    def model_class(self, name: str) -> type[Model]:
        return MODELS[name]

    @pytest.fixture
    def fields(self, name: str) -> dict[str, Any]:
        return {"latent_dim": 16, **QUICK.get(name, {})}

    def check_learnt(self, first: dict[str, float], last: dict[str, float]) -> None:
        super().check_learnt(first, last)
        assert last["train/elbo"] > -140


def make(name: str, data: Data, **fields: Any) -> Model:
    given = {"latent_dim": 8, **QUICK.get(name, {}), **fields} if name in LATENT else fields
    return make_model(MODELS[name], data, **given)


def test_the_number_of_threads_changes_nothing_between_equal_seeds(digits: Data, tmp_path: Path):
    # Two threads on a busy core wait for each other; one model's share of that is enough.
    before, states = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(2):
            model = make("vae", digits, epochs=1)
            run(model, digits, tmp_path)
            states.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("wanted", "fast", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_precision_is_the_wanted_one_or_what_the_cpu_is_fast_at(
    wanted: str, fast: bool, expected: torch.dtype, digits: Data, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contract, "FAST_BFLOAT16", fast)
    assert make("vae", digits, precision=wanted).precision == expected


@pytest.mark.parametrize("name", MODELS)
def test_pictures_draw_no_random_number_of_the_training(name: str, digits: Data):
    before = torch.get_rng_state()
    model = make(name, digits)
    model.prepare(digits)
    torch.set_rng_state(before)
    shown, again = (take_pictures(model, digits, Backend()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert shown.keys() == again.keys()
    assert all(torch.equal(shown[key], again[key]) for key in shown)


def test_pictures_show_what_a_bernoulli_model_sees(digits: Data):
    model = make("vae", digits, likelihood="bernoulli")
    assert isinstance(model, LatentModel)
    originals, reconstructions = take_pictures(model, digits, Backend())["reconstructions_val"]
    assert set(originals.unique().tolist()) == {0, 1}
    q = model.posterior(digits.val.examples().with_x(originals))
    torch.testing.assert_close(reconstructions, model.reconstruct(q))


@pytest.mark.parametrize(
    ("height", "width", "channels", "net"), [(13, 9, 3, "conv"), (16, 20, 4, "conv"), (9, 7, 3, "mlp")]
)
def test_images_of_several_channels_and_other_sizes(tmp_path: Path, height: int, width: int, channels: int, net: str):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, height, width, channels), np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    data = load_data(f"npz:{tmp_path / 'own.npz'}", Path())
    for name in MODELS:
        if (deep := "net" in MODELS[name].Config.model_fields) or net == "conv":
            events = run(make(name, data, epochs=1, **({"net": net} if deep else {})), data, tmp_path)
            assert math.isfinite(events[0].metrics["val/loss"])


@pytest.mark.parametrize("fields", [{"net": "mlp", "hidden": 64, "activation": "tanh"}, {"activation": "elu"}])
def test_other_nets_learn_too(sixteen: Data, tmp_path: Path, fields: dict[str, Any]):
    model = make("vae", sixteen, latent_dim=16, epochs=60, lr=3e-3, beta_warmup=0, **fields)
    kinds = {type(module) for module in model.modules()}
    assert {torch.nn.Tanh, torch.nn.ELU} & kinds == {ACTIVATIONS[fields["activation"]]}
    assert torch.nn.ReLU not in kinds
    assert (torch.nn.Conv2d in kinds) == ("net" not in fields)
    events = run(model, sixteen, tmp_path)
    assert events[-1].metrics["train/mse"] < 0.5 * events[0].metrics["train/mse"]


def test_rates_fall_by_their_schedule():
    cosine, constant, staged = (Config(epochs=4000, schedule=name) for name in ("cosine", "constant", "staged"))
    assert [rate_factor(cosine, epochs) for epochs in (0, 2000, 4000)] == pytest.approx([1, 0.5, 0])
    assert rate_factor(constant, 3999.9) == 1
    cooldown = Config(epochs=4000, schedule="cooldown")
    falls = [rate_factor(cooldown, epochs) for epochs in (0, 3200, 3600, 3999, 4000)]
    assert falls == pytest.approx([1, 1, 0.5, 1 / 800, 0])
    # Stage i lasts 3^i passes: the rates of all passes sum to that of Burda et al. 2016, section 5.
    rates = [rate_factor(staged, epoch) for epoch in range(4000)]
    stages = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert rates[:3280] == pytest.approx(stages)
    assert set(rates[3280:]) == {rates[3279]}
    assert rates[3279] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["vae", "latent_opt"])
def test_a_gradient_is_shortened_to_the_norm_that_is_asked_for_and_a_shorter_one_is_not(name: str, digits: Data):
    """That of the nets as a whole; that of a row is one image's own."""
    model = make_model(MODELS[name], digits)
    model.prepare(digits)
    optimizers = model.optimizers()
    for clip in (1e-3, 1e9):
        torch.manual_seed(0)
        batch = digits.train.batch(torch.arange(8))
        model.loss(model.terms(batch), 1.0).backward()
        dense = {key: value for key, value in model.named_parameters() if "rows" not in key}
        rows = [value.grad for key, value in model.named_parameters() if "rows" in key and value.grad is not None]
        before = {key: value.grad.clone() for key, value in dense.items() if value.grad is not None}
        before_rows = [each.coalesce().values().clone() for each in rows]
        norm = math.sqrt(sum(each.square().sum().item() for each in before.values()))
        step = Step(Objective(model), [_Idle(optimizer) for optimizer in optimizers], batch, 1.0, None, clip)  # pyright: ignore[reportArgumentType]
        step.move()
        for key, gradient in before.items():
            torch.testing.assert_close(dense[key].grad, gradient * min(1, clip / norm), rtol=1e-4, atol=1e-9)
        for one, other in zip(before_rows, rows, strict=True):
            assert torch.equal(one, other.coalesce().values())
        model.zero_grad()


class _Idle:
    """An optimiser that leaves everything as it is."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        pass

    zero_grad = step


def test_adam_takes_the_constant_of_the_config(digits: Data):
    for name in ("vae", "latent_opt"):
        constants = {
            group["eps"] for each in make(name, digits, adam_eps=1e-4).optimizers() for group in each.param_groups
        }
        assert constants == {1e-4}


def test_continuous_bernoulli_models_see_grey_pixels_and_learn(sixteen: Data, tmp_path: Path):
    for name in ("vae", "latent_opt"):
        model = make(name, sixteen, likelihood="continuous_bernoulli", net="mlp", epochs=60)
        batch = next(sixteen.train.batches(8))
        assert torch.equal(model.observe(batch).x, batch.x)
        events = run(model, sixteen, tmp_path)
        assert events[-1].metrics["train/mse"] < 0.8 * events[0].metrics["train/mse"]


def test_the_bernoulli_model_sees_binary_pixels(digits: Data, tmp_path: Path):
    for name in ("vae", "latent_opt"):
        model = make(name, digits, likelihood="bernoulli", epochs=1)
        seen = model.observe(next(digits.train.batches(8))).x
        assert set(seen.unique().tolist()) <= {0.0, 1.0}
        assert run(model, digits, tmp_path)[0].metrics["train/elbo"] < 0


# latent_opt


def test_the_table_is_bound_to_its_data(digits: Data):
    model = make("latent_opt", digits)
    assert isinstance(model, LatentModel)
    other = load_data("mnist5k", Path(), train_size=64, val_size=20, test_size=20, split_seed=1)
    with pytest.raises(UserError) as error:
        model.posterior(next(other.train.batches(4)))
    assert digits.spec.digest in str(error.value)
    assert other.spec.digest in str(error.value)


def test_a_row_belongs_to_its_image_whatever_the_order(digits: Data):
    model = make("latent_opt", digits, latent_init="normal")
    assert isinstance(model, LatentModel)
    straight = model.posterior(digits.train.batch(torch.arange(64)))
    order = torch.randperm(64)
    shuffled = model.posterior(digits.train.batch(order))
    assert torch.equal(shuffled.mean, straight.mean[order])


def test_test_images_have_no_row(digits: Data):
    model = make("latent_opt", digits)
    assert isinstance(model, LatentModel)
    with pytest.raises(ValueError, match="no row"):
        model.posterior(next(digits.test.batches(4)))


def test_pca_start_is_the_exact_posterior_of_ppca(digits: Data):
    table, ppca = make("latent_opt", digits, latent_init="pca"), make("ppca", digits)
    assert isinstance(table, LatentModel)
    assert isinstance(ppca, LatentModel)
    for split in (digits.train, digits.val):
        batch = split.batch(torch.arange(9))
        torch.testing.assert_close(table.posterior(batch).mean, ppca.posterior(batch).mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            table.posterior(batch).variance, ppca.posterior(batch).variance, rtol=2e-4, atol=1e-5
        )


def test_validation_images_do_not_move_the_decoder(digits: Data):
    model = make("latent_opt", digits)
    before = {key: value.clone() for key, value in model.named_parameters()}
    model.refresh(next(digits.val.batches(20)), 1)
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"val_rows"}


def test_row_adam_is_adam_when_every_row_is_visited_and_still_where_none_is():
    torch.manual_seed(0)
    start, targets = torch.randn(6, 3), torch.randn(6, 3)
    sparse, dense = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[:4].clone())
    row_adam, adam = RowAdam([sparse], 0.05), torch.optim.Adam([dense], 0.05)
    for _ in range(20):
        rows = torch.randperm(4)
        ((torch.nn.functional.embedding(rows, sparse, sparse=True) - targets[rows]) ** 2).sum().backward()
        ((dense - targets[:4]) ** 2).sum().backward()
        for optimizer in (row_adam, adam):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(sparse[:4], dense)
    assert torch.equal(sparse[4:], start[4:])


def test_fitting_longer_and_from_more_starts_does_not_lose(digits: Data, tmp_path: Path):
    bounds = {}
    run(make("latent_opt", digits, epochs=10, lr=3e-3), digits, tmp_path)
    batch = next(digits.test.batches(20))
    for steps, restarts in ((1, 1), (60, 1), (60, 3)):
        model = load_checkpoint(tmp_path / "last.safetensors")
        assert isinstance(model, LatentModel)
        model.config = model.config.model_copy(update={"fit_steps": steps, "fit_restarts": restarts})
        bounds[steps, restarts] = _elbo(model, batch.x, model.infer(batch, torch.Generator().manual_seed(0)))
    assert bounds[60, 1] > bounds[1, 1] + 5
    assert bounds[60, 3] > bounds[60, 1] - 0.5


def _elbo(model: LatentModel, x: torch.Tensor, q: Posterior) -> float:
    z = q.sample(200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (model.log_joint(x, z) - q.log_prob(z)).mean().item()


def test_beta_weights_the_kl_and_warms_up(digits: Data):
    model = make("vae", digits, beta=4.0, beta_warmup=10)
    terms = model.terms(next(digits.train.batches(16)))
    distortion, rate = -terms.log_px_z.mean(), terms.kl.mean()
    for epochs, beta in ((0, 0.0), (5, 2.0), (10, 4.0), (25, 4.0)):
        torch.testing.assert_close(model.loss(terms, model.kl_weight(epochs)), distortion + beta * rate)
    torch.testing.assert_close(elbo(terms).mean(), -distortion - rate)


def test_the_classifier_reads_the_embedded_digits(tmp_path: Path):
    data = load_data("mnist5k", Path())
    model = make("cnn", data, epochs=6, batch_size=64)
    run(model, data, tmp_path)
    with torch.no_grad():
        accuracy = model.metrics(model.terms(data.test.batch(torch.arange(500))))["accuracy"].mean().item()
    # The goal is 95% after the default ten epochs; 500 images leave a standard error of one percent.
    assert accuracy >= 0.95


@pytest.mark.parametrize(
    ("batch", "channels", "kernel", "stride", "padding"),
    [(5, 1, 4, 2, 1), (5, 3, 4, 2, 1), (0, 1, 4, 2, 1), (5, 3, 6, 2, 2), (5, 2, 3, 3, 0)],
)
def test_the_last_layer_of_a_decoder_is_a_transposed_convolution(
    batch: int, channels: int, kernel: int, stride: int, padding: int
):
    layer = ToImage(8, channels, kernel, stride=stride, padding=padding)
    base = torch.nn.ConvTranspose2d(8, channels, kernel, stride=stride, padding=padding)
    base.load_state_dict(layer.state_dict())
    x = torch.randn(batch, 8, 6, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    one, other = layer(x), base(x)
    torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other)
    weights = torch.randn_like(other)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, *net.parameters()]) for y, net in ((one, layer), (other, base))
    ]
    torch.testing.assert_close(*gradients)


def test_rows_are_found_by_whole_numbers(digits: Data):
    """A float would take one of the images beyond 16 million for its neighbour."""
    model = MODELS["latent_opt"](MODELS["latent_opt"].Config.parse({"latent_dim": 2}), digits.spec)
    for split in ("train", "val"):
        many = replace(digits.splits[split], index=torch.arange(len(digits.splits[split])) + 2**24)
        digits = replace(digits, **{split: many})
    model.prepare(digits)
    for split in (digits.train, digits.val):
        rows, count = model.place(split.batch(torch.arange(len(split))))
        assert count == len(split)
        assert rows.sort().values.tolist() == list(range(count))
