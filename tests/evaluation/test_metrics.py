"""What is logged under which key: all of it is on the page, and is of the last evaluation."""

import re
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from conftest import REPOSITORY

from elbolab import Reproduction
from elbolab.config.schema import CompareConfig, EvaluateConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.report.compare import compare
from elbolab.tracking import mlflow_reader
from elbolab.tuning.loader import load_study

TINY: dict[str, Any] = {"train_size": 40, "val_size": 20, "test_size": 20, "epochs": 1}
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {},
    **{name: {"latent_dim": 3, "net": "mlp", "hidden": 8} for name in ("vae", "iwae", "semi_amortized")},
    "latent_opt": {"latent_dim": 3, "net": "mlp", "hidden": 8, "fit_steps": 5},
    "ppca": {"latent_dim": 3},
}
GAPS = EvaluateConfig(samples=50, images=12, gap_images=2, ais_chains=2, ais_distributions=3, local_steps=2)
PLACES = {"SPLIT": "(train|val|test)", "NAME": r"\w+", "D": r"\d", "N": r"\d+"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A run of every model, evaluated with gaps and by the evaluators of the shipped studies, on a store of its own."""
    before, folder = mlflow.get_tracking_uri(), tmp_path_factory.mktemp("metrics")
    studies = [
        load_study(str(REPOSITORY / "studies" / f"{name}.py"))[1] for name in ("burda2016", "amortized_vs_latent")
    ]
    more = [one for study in studies if isinstance(study, Reproduction) for one in study.evaluators]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        runs = {name: train_model(name, MODELS[name].Config.parse(TINY | own)) for name, own in SMALL.items()}
        for name, run in runs.items():
            evaluate_run(run, GAPS, more if name == "vae" else ())
        yield runs
    mlflow.set_tracking_uri(before)


def defined(key: str, names: list[str]) -> bool:
    """Whether a key is one of the page's names, or one of these with a suffix that the page explains."""
    for name in names:
        start, dots, suffix = name.rpartition("\u2026")
        if dots and key.startswith(start) and key.endswith(suffix):
            if defined(key.removesuffix(suffix), names):
                return True
        elif not dots and re.fullmatch(re.sub("SPLIT|NAME|(?<=_)[DN]$", lambda found: PLACES[found[0]], name), key):
            return True
    return False


def test_every_key_is_on_the_page(trained: dict[str, str]):
    page = (REPOSITORY / "docs" / "metrics.md").read_text().partition("## Formulas")[0]
    names = [name for line in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall("`(.*?)`", line)]
    keys = {key for run in trained.values() for key in mlflow.get_run(run).data.metrics}
    assert {"test/nll_5000_se", "test/log_px_fit_100_se", "test/gap_elbo_se", "test/kid_floor"} <= keys
    assert {"train/unreliable_table", "val/iw_bound", "train/inference_gap_table_se", "simulated/bdmc_gap"} <= keys
    assert sorted(key for key in keys if not defined(key, names)) == []
    assert not any(defined(key, names) for key in ("test/elbow", "test/nll", "test/elbow_se", "val/log_px_digit_x"))


def test_an_evaluation_takes_the_place_of_the_one_before_it(trained: dict[str, str]):
    run = trained["latent_opt"]
    training = {key for key, metric in _steps(run).items() if metric > 0}
    assert "Inference gap" in compare(CompareConfig(run=(run,))).read_text()
    found = evaluate_run(run, EvaluateConfig(samples=10, images=1))
    metrics = mlflow_reader.get_run(run).metrics
    assert metrics.keys() == training | found.keys()
    assert all(metrics[key] == value for key, value in found.items())
    assert not {"test/inference_gap", "test/log_px_se", "train/pareto_k_table", "test/kid"} & metrics.keys()
    # The file is still there.
    assert "evaluation/gap.parquet" in mlflow_reader.list_artifacts(run, "evaluation")
    page = compare(CompareConfig(run=(run,))).read_text()
    assert "Inference gap" not in page
    assert not re.search(r">\s*(nan|None|± nan)", re.sub(r'"data:[^"]*"', "", page))
    evaluate_run(run, GAPS)
    assert "Inference gap" in compare(CompareConfig(run=(run,))).read_text()


def _steps(run: str) -> dict[str, int]:
    return {metric.key: metric.step for metric in mlflow.get_run(run).data.to_proto().metrics}
