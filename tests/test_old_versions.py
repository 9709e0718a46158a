"""What 0.1.0 left is read, compared, gone on with and served by today's code.

`fixtures/elbolab-0.1.0.tar.xz` is a working folder as 0.1.0 left it, made for `/elbolab-0.1.0`: a cnn and a vae, both
evaluated, the vae registered as digits-vae@champion, a study of two trials, and a latent_opt training of four epochs
that was killed in its third. Its files are as 0.1.0 wrote them, but for the paths of the machine in them.
"""

import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from helpers_studies import carry_out, children, trials_of

from elbolab import Reproduction, load_model
from elbolab.config.schema import CompareConfig, EvaluateConfig
from elbolab.evaluation import EVALUATORS, Evaluation
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.loading import load_for
from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.report.compare import compare
from elbolab.report.fetch import LIKELIHOOD, likelihood
from elbolab.tracking import mlflow_reader, run_names
from elbolab.tuning.command import load_study

FIXTURE = Path(__file__).parent / "fixtures" / "elbolab-0.1.0.tar.xz"
VERSION = "models:/digits-vae@champion"
EVALUATION = EvaluateConfig(method="importance", samples=30, images=20)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "elbolab-0.1.0"


@pytest.fixture
def old(unused_store: Path, unpacked: Path) -> Path:
    """The working folder of 0.1.0, moved to the test's own."""
    shutil.copytree(unpacked, unused_store, dirs_exist_ok=True)
    with closing(sqlite3.connect(unused_store / "mlflow.db")) as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, '/elbolab-0.1.0', ?)", (f"{unused_store}",)
            )
        database.commit()
    (journal,) = unused_store.glob("unfinished/*/journal.jsonl")
    journal.write_text(journal.read_text().replace("sqlite:////elbolab-0.1.0", f"sqlite:///{unused_store}"))
    return unused_store


def run_of(model: str, kind: str = "train") -> mlflow_reader.RunRecord:
    (run,) = mlflow_reader.find_runs(params={"model": model}, tags={"elbolab.kind": kind}, kind=kind)
    return run


def test_its_runs_are_compared_with_the_numbers_that_they_have(old: Path):
    page = compare(CompareConfig()).read_text()
    logged = run_of("vae").metrics
    assert f"{abs(logged['test/log_px']):.1f}" in page
    assert run_of("cnn").id in page


def test_its_run_is_evaluated_to_the_numbers_that_were_logged_then(old: Path):
    run = run_of("vae")
    images = likelihood(run, {LIKELIHOOD})
    # Means of log p(x) are over the split now, and were over the evaluated images.
    logged = {
        re.sub(r"/log_px(?=$|_se)", "/log_px_evaluated", key): run.metrics[key]
        for key in mlflow_reader.evaluated_metrics(run.id)
        # The interval of class preservation was another.
        if not re.search("digit|posterior_elbo|constant|_low$|_high$", key)
    }
    assert "test/log_px_evaluated" in logged
    found = evaluate_run(run.id, EVALUATION)
    assert {key: found[key] for key in logged} == pytest.approx(logged, abs=1e-4)
    again = (
        likelihood(mlflow_reader.get_run(run.id), {LIKELIHOOD}).query("posterior != 'fitted'").reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(pd.DataFrame(again, columns=images.columns), images, check_dtype=False, atol=1e-3)


def test_its_registered_version_is_the_model_of_its_run(old: Path):
    run = run_of("vae")
    version, own = load_model(VERSION), load_model(run.id)
    assert all(torch.equal(a, b) for a, b in zip(version.state_dict().values(), own.state_dict().values(), strict=True))
    found = EVALUATORS["likelihood"](Evaluation(version, load_for(version.config), EVALUATION)).metrics
    assert found["test/log_px_evaluated"] == pytest.approx(run.metrics["test/log_px"], abs=1e-4)


@pytest.mark.parametrize("imported", ["", "import elbolab.cli, elbolab.models.vae"])
def test_its_registered_version_answers_with_and_without_today_s_code(old: Path, imported: str):
    model = load_model(VERSION)
    assert isinstance(model, LatentModel)
    images = load_for(model.config).test.images[:4]
    np.save("images.npy", images.permute(0, 2, 3, 1).numpy())
    lines = [
        imported,
        "import mlflow, numpy",
        f"mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})",
        f"served = mlflow.pyfunc.load_model({VERSION!r})",
        "images = numpy.load('images.npy')",
        "numpy.save('reconstructed.npy', served.predict(images, params={'op': 'reconstruct'}))",
        "assert served.predict(images, params={'op': 'encode'})['log_var'].shape == (4, 3)",
        "assert served.predict(images, params={'op': 'sample', 'n': 2}).shape == (2, 28, 28, 1)",
        "assert (served.predict(images, params={'op': 'log_px', 'samples': 9})['log_px'] < 0).all()",
        "import elbolab; print(elbolab.__file__)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=old, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(old) == (not imported)
    with torch.no_grad():
        x = model.reconstruct(model.infer(load_for(model.config).test.batch(torch.arange(4))))
    assert np.load("reconstructed.npy") == pytest.approx(x.permute(0, 2, 3, 1).numpy(), abs=1e-5)


def test_its_killed_training_goes_on_in_its_own_run_to_the_same_weights(old: Path):
    (run,) = [run for run in mlflow.search_runs(output_format="list") if run.info.status == "RUNNING"]
    assert resume(run.info.run_id) == run.info.run_id
    assert not (old / "unfinished").exists()
    finished = run_names.find_training(run.info.run_id)
    assert finished.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(finished.id, "val/elbo")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    params = {key: value for key, value in finished.params.items() if key != "model"}
    whole = load_model(train_model("latent_opt", MODELS["latent_opt"].Config.parse(params)))
    for key, value in load_model(finished.id).state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[key], rtol=1e-4, atol=1e-4)


def test_its_study_goes_on_with_the_trials_that_it_has(old: Path):
    before = [trial.params for trial in trials_of("lr")]
    (parent,) = mlflow_reader.find_runs(tags={"elbolab.study": "lr"}, kind="study")
    assert carry_out("lr", trials=3) == parent.id
    trials = trials_of("lr")
    assert [trial.params for trial in trials][:2] == before
    assert set(children(parent.id)) == {0, 1, 2}
    # By the defaults of then, which are others now.
    new = children(parent.id)[2].data.params
    for field, value in {"schedule": "cosine", "clip": "0.0", "pca_epochs": "0"}.items():
        assert new[field] == value
        assert str(getattr(MODELS["vae"].Config(), field)) != value


@pytest.mark.parametrize("name", ["burda2016", "amortized_vs_latent"])
def test_its_studies_are_read_with_their_imports_of_then(old: Path, name: str):
    study = load_study(name)[1]
    assert isinstance(study, Reproduction)
    assert study.evaluators
