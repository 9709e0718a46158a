"""Every metric is declared once: what is logged, asked for, shown and documented is what the declaration says."""

import contextlib
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import REPOSITORY

from elbolab import Reproduction
from elbolab.config.schema import CompareConfig, EvaluateConfig, PromoteConfig
from elbolab.evaluation.metrics import (
    CLASS_PRESERVATION,
    LOG_PX,
    METRICS,
    NLL_5000,
    STORED,
    find_metric,
    is_doubtful,
)
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.registry.packaging import log_model
from elbolab.registry.versions import promote
from elbolab.report.collect import Entry
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.journal import Journal
from elbolab.tracking.keys import HALF_SENT
from elbolab.tracking.mlflow_reader import is_evaluated
from elbolab.tracking.offline import UNFINISHED, send_unfinished
from elbolab.tuning.command import load_study

TINY: dict[str, Any] = {"train_size": 40, "val_size": 20, "test_size": 20, "epochs": 1}
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {},
    **{
        name: {"latent_dim": 3, "net": "mlp", "hidden": 8} for name in ("vae", "iwae", "hierarchical", "semi_amortized")
    },
    "latent_opt": {"latent_dim": 3, "net": "mlp", "hidden": 8, "fit_steps": 5},
    "ppca": {"latent_dim": 3},
    "vae learned": {"latent_dim": 3, "net": "mlp", "hidden": 8, "sigma": "learned"},
    "vae logistic": {"latent_dim": 3, "net": "mlp", "hidden": 8, "likelihood": "discretised_logistic"},
}
GAPS = EvaluateConfig(
    samples=50,
    images=12,
    budget=1,
    simulated=4,
    gap_images=2,
    ais_chains=2,
    ais_distributions=3,
    local_steps=2,
    local_family="all",
    ood=("mnist5k",),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A run of every model, evaluated with gaps and by the evaluators of the shipped studies, on a store of its own."""
    before, folder = mlflow.get_tracking_uri(), tmp_path_factory.mktemp("metrics")
    studies = [
        load_study(str(REPOSITORY / "studies" / f"{name}.py"))[1]
        for name in ("burda2016", "amortized_vs_latent", "nowozin2018", "vampprior2018")
    ]
    more = [one for study in studies if isinstance(study, Reproduction) for one in study.evaluators]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        runs = {
            name: train_model(kind := name.split()[0], MODELS[kind].Config.parse(TINY | own))
            for name, own in SMALL.items()
        }
        evaluate_run(runs["latent_opt"], EvaluateConfig(method="importance", samples=50, images=12))
        for name, run in runs.items():
            evaluate_run(run, GAPS, more if name in ("vae", "vae logistic") else ())
        yield runs
    mlflow.set_tracking_uri(before)


def test_every_logged_key_is_declared_and_every_metric_logged(trained: dict[str, str]):
    keys = {key for run in trained.values() for key in mlflow.get_run(run).data.metrics}
    assert sorted(key for key in keys if find_metric(key) is None) == []
    # Only a study's trial has an objective; a density of images has no distortion by epoch.
    lacking = {metric.name for metric in METRICS if not any(metric.covers(key) for key in keys)}
    assert lacking == {"{NAME}"}
    for metric in METRICS:
        if (found := [key for key in keys if metric.covers(key)]) and metric.errors:
            ends = [name.removeprefix(metric.name) for name in metric.error_names]
            assert all(any(key.endswith(end) for key in found) for end in ends if "{" not in metric.name)


def test_bits_are_of_probabilities_alone_and_those_of_log_px(trained: dict[str, str]):
    numbers = {name: mlflow.get_run(run).data.metrics for name, run in trained.items()}
    assert [name for name, has in numbers.items() if "test/bits_per_dim" in has] == ["vae logistic"]
    assert [name for name, has in numbers.items() if "val/sigma" in has] == ["vae learned"]
    found, per_dim = numbers["vae logistic"], 784 * math.log(2)
    for split in ("train", "val", "test"):
        assert found[f"{split}/bits_per_dim"] == pytest.approx(-found[f"{split}/log_px"] / per_dim)
        assert found[f"{split}/bits_per_dim_se"] == pytest.approx(found[f"{split}/log_px_se"] / per_dim)


def test_a_report_has_the_bits_where_a_run_has_them_and_compares_no_others_with_it(
    trained: dict[str, str], tmp_path: Path
):
    bits = mlflow.get_run(trained["vae logistic"]).data.metrics["test/bits_per_dim"]
    page = compare(CompareConfig(run=(trained["vae logistic"],), out=tmp_path)).read_text()
    assert "Test Bits per dimension" in page
    assert f"{bits:.2f}" in page
    page = compare(CompareConfig(run=(trained["vae learned"],), out=tmp_path)).read_text()
    assert "Bits per dimension" not in page
    for one, other in (("vae logistic", "vae"), ("vae learned", "vae"), ("vae logistic", "vae learned")):
        with pytest.raises(UserError, match="runs of different observation models cannot be compared"):
            compare(CompareConfig(run=(trained[one], trained[other]), out=tmp_path))


def test_a_key_belongs_to_one_metric():
    for metric in METRICS:
        for split in metric.splits:
            key = metric.at(split, D=3, N=100, NAME="elbo", FAMILY="full", DATASET="fashion_mnist")
            assert [one.name for one in METRICS if one.covers(key)] == [metric.name]
    for key in ("test/elbow", "test/nll", "test/elbow_se", "val/log_px_digit_x", "test/lr", "log_px", "val/kid"):
        assert find_metric(key) is None


def test_what_is_asked_for_is_declared(trained: dict[str, str]):
    entry = Entry("vae", 0, (mlflow_reader.get_run(trained["vae"]),), ())
    numbers = mlflow.get_run(trained["vae"]).data.metrics
    assert entry.metric(LOG_PX, "test") == numbers["test/log_px"]
    ends = ["test/class_preservation", "test/class_preservation_low", "test/class_preservation_high"]
    assert [*entry.measures(CLASS_PRESERVATION, "test").values()] == [numbers.get(key) for key in ends] or (
        "test/class_preservation" not in numbers
    )
    for ask in (entry.metric, entry.measures, entry.has):
        with pytest.raises(ValueError, match="log_px_table' is of train, not of 'test'"):
            ask(STORED[LOG_PX], "test")


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("test/log_px", "test/unreliable"),
        ("train/log_px_table", "train/unreliable_table"),
        (NLL_5000.at("test"), "test/nll_5000_unreliable"),
        ("test/somebody", "test/somebody_unreliable"),
    ],
)
def test_a_mean_is_doubtful_where_most_images_are(key: str, share: str):
    assert is_doubtful({key: -90.0, share: 0.51}, key)
    assert not is_doubtful({key: -90.0, share: 0.5}, key)
    assert not is_doubtful({key: -90.0}, key)


def test_the_page_has_the_declared_table():
    script = runpy.run_path(str(REPOSITORY / "docs" / "metrics.py"))
    _, rows, _ = script["PARTS"].fullmatch((REPOSITORY / "docs" / "metrics.md").read_text()).groups()
    assert rows == script["table"]()
    assert all(len(re.split(r"(?<!\\)\|", row)) == 8 for row in rows.splitlines())


def test_a_metric_is_renamed_by_one_line(tmp_path: Path):
    """In a copy of the package: an evaluation logs it by its new name, and report and CSV have it too."""
    shutil.copytree(REPOSITORY / "src" / "elbolab", tmp_path / "elbolab")
    changed = 0
    for file in tmp_path.rglob("*.py"):
        text = file.read_text()
        changed += len(re.findall(r"\bposterior_elbo\b", text))
        file.write_text(re.sub(r"\bposterior_elbo\b", "renamed_elbo", text))
    assert changed == 1
    code = """
from elbolab import EvaluateConfig, evaluate_run, train_model, MODELS
from elbolab.config.schema import CompareConfig
from elbolab.report.compare import compare
import elbolab, pathlib
assert pathlib.Path(elbolab.__file__).parent.parent == pathlib.Path.cwd()
tiny = dict(train_size=40, val_size=20, test_size=20, epochs=1, latent_dim=2)
found = evaluate_run(train_model("ppca", MODELS["ppca"].Config.parse(tiny)), EvaluateConfig(samples=5, images=5))
report = compare(CompareConfig()).parent
line = next(line for line in (report / "report.md").read_text().splitlines() if line.startswith("| ppca"))
assert f"{found['test/renamed_elbo']:.2f}".replace("-", "\u2212") in line
assert "renamed_elbo" in (report / "summary.csv").read_text().splitlines()[0]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_declaration_and_the_report_need_no_torch():
    code = "import sys, elbolab.evaluation.metrics, elbolab.report.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_evaluation_takes_the_place_of_the_one_before_it(trained: dict[str, str]):
    run = trained["latent_opt"]
    training = {key for key, metric in _steps(run).items() if metric > 0}
    assert "Inference gap" in compare(CompareConfig(run=(run,))).read_text()
    found = evaluate_run(run, EvaluateConfig(samples=10, images=1, budget=1))
    metrics = mlflow_reader.get_run(run).metrics
    assert metrics.keys() == training | found.keys()
    assert all(metrics[key] == value for key, value in found.items())
    assert not {"test/inference_gap", "test/log_px_se", "train/pareto_k_table", "test/kid"} & metrics.keys()
    # The file is still there.
    assert "evaluation/gap.parquet" in artifacts.list_artifacts(run, "evaluation")
    page = compare(CompareConfig(run=(run,))).read_text()
    assert "Inference gap" not in page
    assert not re.search(r">\s*(nan|None|± nan)", re.sub(r'"data:[^"]*"', "", page))
    evaluate_run(run, GAPS)
    assert "Inference gap" in compare(CompareConfig(run=(run,))).read_text()


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from elbolab.cli import main

sent = MlflowClient.log_artifact

def killed(*arguments, **keywords):
    sent(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)

MlflowClient.log_artifact = killed
main()
"""


def test_an_evaluation_that_is_killed_while_its_files_are_sent_leaves_no_mixture(trained: dict[str, str]):
    run = trained["iwae"]
    arguments = ["evaluate", run, "--images", "3", "--seed", "9", "--budget", "1", "--simulated", "0"]
    there = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not is_evaluated(mlflow_reader.get_run(run))
    page = compare(CompareConfig(run=(run,))).read_text()
    assert f"iwae has not been evaluated. Run <code>elbolab evaluate {run}</code>" in page
    assert "Fréchet" not in page
    with pytest.raises(UserError, match="has not been evaluated"):
        promote(run, PromoteConfig(name="digits"))
    (line,) = send_unfinished(log_model, run)
    assert run in line
    assert mlflow_reader.get_run(run).tags["evaluation.seed"] == "9"
    assert is_evaluated(mlflow_reader.get_run(run))
    evaluate_run(run, GAPS)


def test_an_evaluation_that_was_killed_is_not_sent_over_a_newer_one_of_another_folder(
    trained: dict[str, str], tmp_path: Path
):
    run = trained["iwae"]
    there = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [sys.executable, "-c", KILLED, "evaluate", run, "--images", "3", "--seed", "9", "--budget", "1"]
    command += ["--simulated", "0"]
    done = subprocess.run(command, env=there, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    evaluate_run(run, GAPS)
    with contextlib.chdir(tmp_path):
        (line,) = send_unfinished(log_model)
        assert f"run {run} has a newer evaluation" in line
        assert send_unfinished(log_model) == []
    found = mlflow_reader.get_run(run)
    assert is_evaluated(found)
    assert (found.tags["evaluation.seed"], found.tags["evaluation.images"]) == ("0", str(GAPS.images))


@pytest.mark.parametrize("on_its_way", [False, True])
def test_an_evaluation_that_another_overtakes_is_dropped(
    trained: dict[str, str], on_its_way: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Suspended while it is sent, before a file or with one on its way, which may have replaced that of the other."""
    run, sent, updated = trained["iwae"], mlflow.MlflowClient.log_artifact, Journal.update_state
    newer = EvaluateConfig(images=3, seed=7, budget=1, simulated=0)

    def evaluate_meanwhile() -> None:
        monkeypatch.undo()
        # From another folder, where nothing of the first is seen.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            evaluate_run(run, newer)

    def before_a_file(client: mlflow.MlflowClient, *arguments: Any, **keywords: Any) -> None:
        evaluate_meanwhile()
        sent(client, *arguments, **keywords)

    def after_the_tags(journal: Journal, **values: Any) -> None:
        updated(journal, **values)
        if "values" in values:
            time.sleep(0.01)
            evaluate_meanwhile()

    if on_its_way:
        monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", before_a_file)
    else:
        monkeypatch.setattr(Journal, "update_state", after_the_tags)
    evaluate_run(run, EvaluateConfig(images=4, seed=8, budget=1, simulated=0))
    assert f"run {run} has a newer evaluation; the rest of an older one is dropped" in capsys.readouterr().err
    assert not UNFINISHED.exists()
    found = mlflow_reader.get_run(run)
    assert is_evaluated(found) != on_its_way
    if not on_its_way:
        assert found.tags["evaluation.seed"] == "7"
        assert (
            len(
                artifacts.read(run, "evaluation/likelihood.parquet", pd.read_parquet)[
                    ["split", "index"]
                ].drop_duplicates()
            )
            == 9
        )
    evaluate_run(run, GAPS)
    assert is_evaluated(mlflow_reader.get_run(run))


def test_an_evaluation_that_is_stopped_while_it_is_written_changes_nothing(trained: dict[str, str]):
    run = trained["iwae"]
    before = mlflow_reader.get_run(run)

    def stopped() -> None:
        with tracking.reopen_run(run) as track:
            track.set_tags({"evaluation.protocol": HALF_SENT})
            track.log_value({}, "evaluation/classes.json")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not UNFINISHED.exists()
    assert mlflow_reader.get_run(run) == before


def _steps(run: str) -> dict[str, int]:
    return {metric.key: metric.step for metric in mlflow.get_run(run).data.to_proto().metrics}
