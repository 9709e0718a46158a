"""Conv nets of any size: what is padded and cropped, how deep they are, and that nets of before are as they were."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import torch
from helpers_studies import SEARCH, carry_out, children, define
from PIL import Image
from torch import nn

from elbolab.config.schema import EvaluateConfig
from elbolab.config.version_0_1_0 import with_added, with_depth
from elbolab.data.batches import Batch, DataSpec
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.models.latent import DECODES_AT_ONCE, LatentModel
from elbolab.models.networks import ConvNets, Shape, ToImage, automatic_depth, lenet, make_nets
from elbolab.models.neural import DeepLatentModel
from elbolab.registry.packaging import load_model
from elbolab.support.errors import UserError
from elbolab.tracking.artifacts import model_of as model_of_run
from elbolab.tracking.mlflow_reader import get_run
from elbolab.training.checkpoint import load_checkpoint, write
from elbolab.tuning.optuna_storage import DEFAULTS

SHAPES: list[Shape] = [(1, 8, 8), (4, 8, 9), (3, 9, 9), (4, 20, 20), (1, 28, 20), (3, 65, 33), (1, 128, 128)]


def model_of(shape: Shape, name: str = "vae", **fields: Any) -> DeepLatentModel:
    torch.manual_seed(0)
    config = MODELS[name].Config.parse({"latent_dim": 3, "width": 4, **fields})
    model = MODELS[name](config, DataSpec(shape, 2, 8, 4, "digest"))
    assert isinstance(model, DeepLatentModel)
    return model


def batch_of(shape: Shape, size: int = 3) -> Batch:
    x = torch.rand(size, *shape, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.zeros(size, dtype=torch.int64), torch.arange(size), "test", "digest")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_the_elbo_reaches_every_weight_and_pixel(shape: Shape):
    model = model_of(shape, activation="elu")
    batch = batch_of(shape)
    batch.x.requires_grad_()
    terms = model.terms(batch)
    assert model.decode(torch.zeros(2, 5, 3)).shape == (2, 5, *shape)
    (terms.log_px_z - terms.kl).mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name
    assert batch.x.grad is not None
    assert (batch.x.grad != 0).all()
    # A pixel of the decoder's image that is cropped would be one that nothing trains.
    assert isinstance(model.decoder, nn.Sequential)
    bias = dict(model.named_parameters())[f"decoder.{_place(model.decoder, ToImage)}.bias"]
    decoded = model.decoder(torch.randn(2, 3))
    expected = torch.full_like(bias, 2 * math.prod(shape[1:]))
    torch.testing.assert_close(torch.autograd.grad(decoded.sum(), bias)[0], expected)


def _place(net: nn.Sequential, kind: type[nn.Module]) -> int:
    return next(place for place, layer in enumerate(net) if isinstance(layer, kind))


@pytest.mark.parametrize(("shape", "margins"), [((3, 9, 10), (1, 2, 1, 1)), ((1, 20, 33), (0, 0, 1, 2))])
def test_images_are_padded_as_much_on_either_side_and_cropped_again(shape: Shape, margins: tuple[int, ...]):
    """Nets for the padded images, with the same weights, give the same of these, and around the same image more."""
    top, bottom, left, right = margins
    channels, height, width = shape
    padded = (channels, height + top + bottom, width + left + right)
    nets = ConvNets(depth=2, width=4)
    states = [nets.encoder(shape, 6), nets.decoder(3, shape)]
    wholes = [nets.encoder(padded, 6), nets.decoder(3, padded)]
    for own, whole in zip(states, wholes, strict=True):
        # Only the names differ, by the layer that pads.
        whole.load_state_dict(dict(zip(whole.state_dict(), own.state_dict().values(), strict=True)))
    x, z = torch.rand(2, *shape), torch.randn(2, 3)
    around = torch.zeros(2, *padded)
    around[..., top : top + height, left : left + width] = x
    torch.testing.assert_close(states[0](x), wholes[0](around))
    torch.testing.assert_close(states[1](z), wholes[1](z)[..., top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("sides", "depth"),
    [((8, 8), 2), ((28, 28), 2), ((32, 32), 2), ((33, 20), 3), ((64, 64), 3), ((65, 33), 4), ((128, 128), 4)],
)
def test_images_are_halved_until_the_longer_side_has_at_most_eight_pixels(sides: tuple[int, int], depth: int):
    assert automatic_depth(*sides) == automatic_depth(*sides[::-1]) == depth
    assert max(sides) <= 8 * 2**depth
    assert depth == 2 or max(sides) > 8 * 2 ** (depth - 1)
    nets = ConvNets(width=8)
    widths = [layer.out_channels for layer in nets.encoder((3, *sides), 2) if isinstance(layer, nn.Conv2d)]
    assert widths == [8, 16, 32, 32][:depth]
    shapes = [weight.shape for weight in nets.decoder(2, (3, *sides)).parameters() if weight.ndim == 4]
    assert [shape[0] for shape in shapes] == widths[::-1]
    # However long, it must not be halved to less than the shorter side allows.
    for long in (8, 100, 1000):
        assert automatic_depth(8, long) == 2
        assert 2 ** automatic_depth(long, 17) < 17


@pytest.mark.parametrize(("side", "most"), [(8, 2), (9, 3), (16, 3), (17, 4), (28, 4)])
def test_a_depth_that_leaves_less_than_two_pixels_is_refused(side: int, most: int):
    shape = (1, side, 40)
    for depth in range(1, most + 1):
        encoder = ConvNets(depth=depth, width=2).encoder(shape, 2)
        seen = encoder[: _place(encoder, nn.Flatten)](torch.zeros(1, *shape))
        assert min(seen.shape[2:]) == math.ceil(side / 2**depth) >= 2
    with pytest.raises(UserError, match=f"depth={most + 1} leaves images of {side} by 40 .* at most {most}$"):
        model_of(shape, depth=most + 1)


def _nets_of_before(shape: Shape, latents: int, outputs: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Decoder and encoder as they were when all images were halved twice, in the order in which a vae draws them."""
    channels, height, width = shape[0], shape[1] // 4, shape[2] // 4
    decoder = nn.Sequential(
        nn.Linear(latents, 256),
        nn.ReLU(),
        nn.Linear(256, 64 * height * width),
        nn.ReLU(),
        nn.Unflatten(1, (64, height, width)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        ToImage(32, channels, 4, stride=2, padding=1),
    )
    encoder = nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * height * width, 256),
        nn.ReLU(),
        nn.Linear(256, outputs),
    )
    # The order of memory in which they were kept, which rounds in its own way.
    decoder, encoder = (
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for net in (decoder, encoder)
    )
    return decoder, encoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 12), (1, 8, 32)])
def test_nets_of_sides_up_to_32_are_those_of_before_bit_for_bit(shape: Shape):
    model = model_of(shape, width=32)
    torch.manual_seed(0)
    decoder, encoder = _nets_of_before(shape, 3, 6)
    x, z = batch_of(shape, 5).x, torch.randn(7, 3)
    for own, before, given in ((model.decoder, decoder, z), (model.get_submodule("encoder"), encoder, x)):
        assert list(own.state_dict()) == list(before.state_dict())
        assert all(torch.equal(value, before.state_dict()[key]) for key, value in own.state_dict().items())
        assert torch.equal(own(given), before(given))


def without_choice(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it was before nets had a depth and a width."""
    return {key: value for key, value in config.items() if key not in ("depth", "width")}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 40)])
def test_a_checkpoint_of_before_has_its_two_halvings(tmp_path: Path, shape: Shape):
    spec = DataSpec(shape, 2, 8, 4, "digest")
    decoder, encoder = _nets_of_before(shape, 3, 6)
    weights = {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    weights |= {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    config = without_choice(MODELS["vae"].Config.parse({"latent_dim": 3}).model_dump(mode="json"))
    write(tmp_path / "old", weights, {"model": "vae", "config": config, "spec": asdict(spec), "epoch": 1})
    found = load_checkpoint(tmp_path / "old")
    assert isinstance(found, DeepLatentModel)
    z = torch.randn(2, 3)
    torch.testing.assert_close(found.decoder(z), decoder(z))
    x = torch.rand(2, *shape)
    torch.testing.assert_close(found.get_submodule("encoder")(x), encoder(x))


def test_parameters_of_before_say_the_depth_where_today_s_is_another():
    today = MODELS["vae"].Config.parse({"latent_dim": 3}).params()
    old = without_choice(today)
    assert with_added(old, (64, 28))["depth"] == with_added(old)["depth"] == "2"
    # The same nets as today's, whose runs are then of one config.
    assert with_added(old, (28, 32)) == with_added(today, (28, 32)) == today
    assert with_added(today, (64, 64)) == with_added(today) == today
    assert "depth" not in with_depth(today)
    cnn = MODELS["cnn"].Config().params()
    assert with_depth(cnn) == cnn


def test_a_study_of_before_goes_on_with_its_depth(store: Path):
    define(store, "old", SEARCH.replace('"epochs": 2', '"epochs": 1, "net": "conv"'))
    parent = carry_out("old", trials=1)
    study = optuna.load_study(study_name="old", storage="sqlite:///optuna.db")
    assert study.user_attrs[DEFAULTS]["depth"] is None
    study.set_user_attr(DEFAULTS, without_choice(study.user_attrs[DEFAULTS]))
    assert carry_out("old", trials=2) == parent
    assert children(parent)[1].data.params["depth"] == "2"


def test_a_start_has_the_depth_and_the_width_of_its_nets():
    shape = (1, 12, 12)
    source = model_of(shape, "vae")
    assert make_nets(source.config) == ConvNets(width=4)
    for fields in ({}, {"depth": 2}, {"hidden": 7}):
        alike = model_of(shape, "latent_opt", start="run", **fields)
        alike.start_from("start", source)
        assert torch.equal(alike.decoder(torch.ones(1, 3)), source.decoder(torch.ones(1, 3)))
    for fields, said in (({"depth": 3}, "depth 2, but this model has 3"), ({"width": 8}, "width 4, .* has 8")):
        with pytest.raises(UserError, match=said):
            model_of(shape, "latent_opt", start="run", **fields).start_from("start", source)


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 9, 13), (3, 28, 21), (1, 65, 33)])
def test_the_cnn_takes_odd_sides_too(shape: Shape):
    net = lenet(shape, 5).eval()
    x = torch.rand(2, *shape, requires_grad=True)
    net(x).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())
    assert x.grad is not None
    # Pooling leaves out what is left over beyond whole blocks of four, but the convolutions have seen their edge.
    whole = x.grad[..., : shape[1] // 4 * 4, : shape[2] // 4 * 4]
    assert (whole.abs().sum((0, 1)) > 0).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (4, 128, 128), (3, 1024, 1024)])
def test_large_images_are_decoded_fewer_at_once(shape: Shape):
    spec = DataSpec(shape, 2, 8, 4, "digest")
    with torch.device("meta"):
        model = MODELS["vae"](MODELS["vae"].Config.parse({"latent_dim": 3, "width": 4}), spec)
    assert isinstance(model, LatentModel)
    most = DECODES_AT_ONCE["cpu"]
    assert model.decodes_at_once == min(most, most * 3 * 64 * 64 // math.prod(shape))
    assert model.decodes_at_once >= 1


def test_small_images_of_four_channels_are_trained_evaluated_and_served(store: Path):
    """28 by 20 pixels, each an opaque or clear blob of a colour, from the file to the served reconstruction."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :20]
    centres, colours = rng.uniform(6, 14, (80, 2, 1, 1)), rng.integers(60, 256, (80, 1, 1, 4))
    blobs = np.exp(-((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2) / 30)
    images = (blobs[..., None] * colours).round().astype(np.uint8)
    np.savez(store / "own.npz", images=images, labels=np.arange(80) % 2)
    values = {"dataset": "npz:own.npz", "latent_dim": 4, "width": 8, "depth": 3, "epochs": 6, "batch_size": 8}
    run = train_model("vae", MODELS["vae"].Config.parse({**values, "patience": 3, "lr": 3e-3}))
    history = mlflow.MlflowClient().get_metric_history(run, "train/elbo")
    assert history[-1].value > history[0].value + 100
    params = get_run(run).params
    assert (params["depth"], params["width"]) == ("3", "8")
    found = evaluate_run(run, EvaluateConfig(images=4, samples=10, budget=1, simulated=0))
    assert all(math.isfinite(value) for value in found.values())
    picture = next(path for path in store.rglob("*.png") if "reconstructions_val" in path.name)
    with Image.open(picture) as shown:
        assert shown.mode == "RGBA"
    model = load_model(run)
    assert isinstance(model, LatentModel)
    nothing = torch.zeros(3, dtype=torch.int64)
    batch = Batch(torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 255, nothing, nothing, "new", "")
    served = mlflow.pyfunc.load_model(f"models:/{model_of_run(run)}").predict(images[:3], {"op": "reconstruct"})
    expected = model.reconstruct(model.infer(batch)).permute(0, 2, 3, 1)
    assert isinstance(served, np.ndarray)
    np.testing.assert_allclose(served, expected, atol=1e-6)


def test_gated_nets_are_products_of_two_linear_layers():
    model = model_of((1, 5, 4), net="mlp", activation="glu", hidden=6)
    assert isinstance(model.decoder, nn.Sequential)
    z, (first, _, second, _, last, _) = torch.randn(2, 3), model.decoder
    assert isinstance(first, nn.Linear)
    x = z
    for layer in (first, second):
        assert isinstance(layer, nn.Linear)
        (kept, gate), (kept_bias, gate_bias) = layer.weight.chunk(2), layer.bias.chunk(2)
        x = (x @ kept.T + kept_bias) * (x @ gate.T + gate_bias).sigmoid()
    torch.testing.assert_close(model.decoder(z).flatten(1), last(x))
    with pytest.raises(UserError, match="activation='glu' gates dense layers, and net='conv' has convolutions"):
        model_of((1, 8, 8), activation="glu")
