"""What a user has set for a whole process, in torch or in matplotlib, changes no training and comes back."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import matplotlib as mpl
import mlflow
import pytest
import torch
from conftest import Command

from elbolab import EvaluateConfig, evaluate_run, load_model, train_model
from elbolab.models.vae import VAE
from elbolab.support.torch_settings import default_settings
from elbolab.tracking import artifacts
from elbolab.training.curves import draw_curves

TINY = {"epochs": 1, "train_size": 40, "val_size": 10, "test_size": 10, "net": "mlp", "hidden": 8, "latent_dim": 2}


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def another_device():
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)


@contextmanager
def unusual_style():
    with mpl.rc_context({"text.usetex": True, "font.family": "No such font", "text.latex.preamble": r"\nonsense"}):
        yield
        assert mpl.rcParams["text.usetex"]


SETTINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float64": float64,
    "another device": another_device,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "LaTeX and a font that is not there": unusual_style,
}


@pytest.fixture(scope="module")
def plain() -> dict[str, object]:
    """What a training and an evaluation by default give, filled by the first that asks."""
    return {}


def trained_and_evaluated() -> tuple[str, dict[str, object]]:
    run_id = train_model("vae", VAE.Config.parse(TINY))
    found = evaluate_run(run_id, EvaluateConfig(method="importance", images=10, samples=10, simulated=0))
    weights = {name: value.tolist() for name, value in load_model(run_id).state_dict().items()}
    return run_id, {**weights, **found}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_and_its_evaluation_are_the_same(store: Path, plain: dict[str, object], name: str):
    if not plain:
        plain.update(trained_and_evaluated()[1])
    with SETTINGS[name]():
        run_id, found = trained_and_evaluated()
        model = load_model(run_id)
        assert isinstance(model, VAE)
        assert model.sample(2, 0).dtype == torch.float32 or name == "another device"
    assert found == plain
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FINISHED"
    assert artifacts.list_artifacts(run_id, "figures") == ["figures/curves.png"]


def test_settings_come_back_once_the_last_thread_is_done():
    """The type by default is that of all threads."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with default_settings():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with default_settings():
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(torch.get_default_dtype())

    with float64():
        threads = [threading.Thread(target=work) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [torch.float32]


def test_settings_come_back_after_an_exception():
    with float64(), pytest.raises(KeyError), default_settings():
        raise KeyError


def test_a_figure_that_cannot_be_drawn_fails_no_training(store: Path, command: Command):
    (store / "matplotlibrc").write_bytes(b"\xe9\xff")
    flags = [item for key, value in TINY.items() for item in (f"--{key.replace('_', '-')}", str(value))]
    # Where matplotlib cannot even be imported.
    done = command("vae", *flags, MATPLOTLIBRC=str(store / "matplotlibrc"), MPLBACKEND="no such backend")
    assert done.returncode == 0, done.stderr
    assert "elbolab: figures/curves.png could not be drawn: UnicodeDecodeError" in done.stderr
    run_id = done.stdout.split()[-1]
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FINISHED"
    assert "figures" not in artifacts.list_artifacts(run_id)
    assert load_model(run_id)


def test_a_figure_that_fails_is_a_line(capsys: pytest.CaptureFixture[str]):
    assert draw_curves([{"train/elbo": -1.0}]) is None
    assert capsys.readouterr().err == "elbolab: figures/curves.png could not be drawn: KeyError: 'val/elbo'\n"
