"""Images without labels, of which nothing speaks of classes, and classes with names, which every page shows."""

import json
import os
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest

from elbolab.config.schema import CompareConfig, EvaluateConfig, ExploreConfig, MainConfig
from elbolab.data.splits import load_data
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.suite import run_all
from elbolab.experiment.train import train_model
from elbolab.explorer.page import explore
from elbolab.models import MODELS
from elbolab.models.cnn import CNNConfig
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader

FREY = Path(os.environ.get("ELBOLAB_DATA", ""), "frey_faces.npz").absolute()


def unlabelled(folder: Path, count: int = 60) -> str:
    np.savez(folder / "faces.npz", images=np.random.default_rng(0).integers(0, 256, (count, 16, 16), np.uint8))
    return "npz:faces.npz"


def test_a_file_without_labels_is_split_at_random(store: Path):
    data = load_data(unlabelled(store), Path())
    assert data.spec.classes == 1
    rows = np.concatenate([data.splits[split].index.numpy() for split in data.splits])
    assert sorted(rows) == list(range(60))
    assert not np.array_equal(data.train.index.numpy(), np.sort(data.train.index.numpy()))
    assert len(data.train.examples()) == 10
    assert len(data.test.examples()) == 6


def test_labels_by_another_name_are_said_to_be_ignored(store: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(store / "own.npz", images=np.full((30, 8, 8), 255, np.uint8), label=np.arange(30) % 3)
    assert load_data("npz:own.npz", Path()).spec.classes == 1
    assert capsys.readouterr().err == "elbolab: npz:own.npz: ignored: label\n"


def test_a_cnn_needs_classes(store: Path):
    with pytest.raises(UserError, match=r"cnn needs images of two classes at least.*; add labels"):
        train_model("cnn", CNNConfig(dataset=unlabelled(store)))
    assert not mlflow_reader.find_runs(status=None)


def test_the_whole_experiment_without_labels(store: Path):
    given = {"dataset": unlabelled(store), "epochs": 1, "images": 4, "budget": 1, "simulated": 0}
    page = run_all(MainConfig.parse(given)).read_text()
    runs = mlflow_reader.find_runs()
    assert {run.params["model"] for run in runs} == {"vae", "latent_opt", "ppca"}
    for run in runs:
        assert run.tags["data.classes"] == "1"
        assert "test/log_px" in run.metrics
        assert not [key for key in run.metrics if "digit" in key or "class" in key]
    for word in ("classifier, so that", "of each class", "elbolab cnn", "Classifiers"):
        assert word not in page, word
    shown = explore([run.id for run in runs if run.params["model"] == "vae"], ExploreConfig(out=store / "page.html"))
    assert '"legend"' not in shown.read_text()


def test_classes_go_by_their_names(store: Path):
    """Also names that a page or a figure could take for something else."""
    names = np.array(["cat", "<b>dog</b>", "a $x$ eel"])
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8), np.uint8)
    np.savez(store / "own.npz", images=images, labels=names[np.arange(90) % 3])
    fields = {"dataset": "npz:own.npz", "epochs": 1}
    cnn = train_model("cnn", MODELS["cnn"].Config.parse(fields))
    run = train_model("ppca", MODELS["ppca"].Config.parse({"dataset": "npz:own.npz", "latent_dim": 2}))
    for one in (cnn, run):
        evaluate_run(one, EvaluateConfig(images=9, simulated=0))
    assert json.loads(mlflow.get_run(run).data.tags["data.class_names"]) == sorted(names)
    index = compare(CompareConfig(run=(cnn, run)))
    page, text = index.read_text(), index.with_name("report.md").read_text()
    # Single images, means by class, confusions of the classifier, changes of class.
    assert page.count('<th scope="row">cat</th>') >= 4
    assert page.count('<th scope="row">&lt;b&gt;dog&lt;/b&gt;</th>') >= 4
    assert "<b>dog" not in page
    assert re.search(r"highest mean for class \D.* nats\), lowest for class \D", text)
    shown = explore([run], ExploreConfig(out=store / "page.html")).read_text()
    assert '<b class="c2">2</b> cat' in shown


@pytest.mark.skipif(not FREY.is_file(), reason="no frey_faces.npz in ELBOLAB_DATA")
def test_the_frey_faces(store: Path):
    """1,965 faces of 28 by 20, of which the first directions explain most."""
    fields = {"dataset": f"npz:{FREY}", "latent_dim": 5}
    run = train_model("ppca", MODELS["ppca"].Config.parse(fields))
    found = evaluate_run(run, EvaluateConfig(images=20, simulated=0))
    trained = mlflow.get_run(run).data
    assert trained.tags["data.classes"] == "1"
    assert found["test/log_px"] > found["test/log_px_constant"]
