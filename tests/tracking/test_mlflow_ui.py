"""Our runs in MLflow's own pages: a real server on real trainings, opened in a browser."""

import os
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from conftest import free_port, mlflow_server

from elbolab.config.schema import Config
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.tracking import mlflow_reader

pytestmark = pytest.mark.scale
SMALL = {"epochs": 5, "train_size": 64, "val_size": 20, "test_size": 20, "latent_dim": 4}
# MLflow 3.17 asks every server who is logged in, and only servers with accounts answer.
NOT_OURS = "/users/current"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server with two trainings, and the names of their runs by id."""
    folder = tmp_path_factory.mktemp("ui")
    runs = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        mlflow.set_tracking_uri(runs)
        configs: list[Config] = [MODELS["vae"].Config.parse({**SMALL, "seed": seed}) for seed in (0, 1)]
        names = {
            run_id: mlflow_reader.get_run(run_id).name for run_id in [train_model("vae", each) for each in configs]
        }
        mlflow.set_tracking_uri(before)
    with mlflow_server(folder, runs, free_port()) as address:
        yield f"{address}/#/experiments/0/runs", names


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which nothing may fail."""
    # So tall that all charts are in sight: MLflow makes the others only when they are scrolled to.
    with browser.new_page(viewport={"width": 1400, "height": 2600}) as view:
        view.set_default_timeout(90_000)
        problems: list[str] = []
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
        yield view
        assert [problem for problem in problems if not problem.endswith(NOT_OURS)] == []


def test_runs_are_listed_by_names_that_differ(served: tuple[str, dict[str, str]], page: Any):
    address, names = served
    page.goto(address)
    first, second = sorted(names.values())
    assert first.startswith("vae latent_dim=4 ")
    assert second == f"{first} seed=1"
    for name in names.values():
        # The run's, and then that of its model, which has its name.
        page.get_by_role("link", name=name, exact=True).first.wait_for()


def test_a_comparison_draws_the_curves_of_both_runs(served: tuple[str, dict[str, str]], page: Any):
    address, names = served
    page.goto(f"{address}?compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("val/elbo")
    for name in names.values():
        page.get_by_text(f"{name} (val/elbo)", exact=True).wait_for()
    curves = ".scatterlayer .js-line"
    # Not told apart by colour: MLflow picks one of 29 by the run's id, so two runs may share it.
    shapes = f"new Set([...document.querySelectorAll('{curves}')].map(curve => curve.getAttribute('d'))).size"
    page.wait_for_function(f"{shapes} == 2")
    # From a point a line goes to each later epoch.
    paths = page.eval_on_selector_all(curves, "curves => curves.map(curve => curve.getAttribute('d'))")
    assert {path.count("L") for path in paths} == {4}


def test_a_run_shows_its_description_and_its_step_images(served: tuple[str, dict[str, str]], page: Any):
    address, names = served
    run_id = next(iter(names))
    page.goto(f"{address}/{run_id}")
    page.get_by_text("elbolab vae --train-size 64 --val-size 20 --test-size 20 --epochs 5 --latent-dim 4").wait_for()
    page.goto(f"{address}/{run_id}/model-metrics")
    title, step = page.get_by_text("reconstructions_val", exact=True), page.get_by_role("spinbutton")
    chart = page.locator("div").filter(has=title).filter(has=step).last
    # The slider of the epochs stands at 0, where there is no picture, until it is moved.
    chart.get_by_role("spinbutton").fill("5")
    chart.get_by_role("spinbutton").blur()
    picture = chart.locator("img[src*='reconstructions_val']")
    picture.wait_for()
    page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle())
