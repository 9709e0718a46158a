"""The classifier that judges a model is of the model's data, or refused before the work."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from elbolab.config.schema import EvaluateConfig, MainConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.suite import run_all
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.support.errors import UserError

QUICK = EvaluateConfig(images=4, samples=2, simulated=0, budget=1)


def trained(name: str, **fields: Any) -> str:
    own = {} if name == "cnn" else {"latent_dim": 2}
    return train_model(name, MODELS[name].Config.parse({**own, "epochs": 1, **fields}))


def images(store: Path, name: str, side: int = 8, channels: int = 1, classes: int = 3, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, side, side, channels), np.uint8)
    np.savez(store / f"{name}.npz", images=pixels, labels=np.arange(60) % classes)
    return f"npz:{name}.npz"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": 3}, r"shape \(3, 8, 8\), but npz:own\.npz has shape \(1, 8, 8\)"),
        ({"side": 12}, r"shape \(1, 12, 12\), but npz:own\.npz has shape \(1, 8, 8\)"),
        ({"classes": 10}, r"classes 10, but npz:own\.npz has classes 3"),
        ({"classes": 2}, r"classes 2, but npz:own\.npz has classes 3"),
        ({"seed": 1}, r"digest \w+, but npz:own\.npz has digest \w+"),
        ({}, None),
    ],
)
def test_a_classifier_of_other_data_is_refused(store: Path, other: dict[str, Any], message: str | None):
    run = trained("ppca", dataset=images(store, "own"))
    classifier = trained("cnn", dataset=images(store, "other", **other))
    chosen = QUICK.model_copy(update={"classifier": classifier})
    if message is None:
        # The same content under another name.
        assert "test/class_preservation" in evaluate_run(run, chosen)
        return
    with pytest.raises(UserError, match=rf"^classifier='{classifier}' was trained on data of {message}; name a cnn of"):
        evaluate_run(run, chosen)
    assert not [key for key in mlflow.get_run(run).data.metrics if key.startswith("test/")]
    # The default is one of the same data, or none.
    assert "test/class_preservation" not in evaluate_run(run, QUICK)


@pytest.mark.parametrize("field", [{"split_seed": 1}, {"train_size": 30}, {"binarise": "half"}])
def test_a_classifier_of_another_split_may_have_seen_the_test_images(store: Path, field: dict[str, Any]):
    dataset = images(store, "own")
    run, classifier = trained("ppca", dataset=dataset), trained("cnn", dataset=dataset, **field)
    with pytest.raises(UserError, match=r"of digest \w+, but npz:own\.npz has digest \w+; name a cnn of the same data"):
        evaluate_run(run, QUICK.model_copy(update={"classifier": classifier}))


def test_a_wrong_classifier_is_told_before_the_first_training_of_main(store: Path):
    classifier = trained("cnn", dataset=images(store, "other", side=16, classes=10))
    given = {"dataset": images(store, "own", side=16), "epochs": 1, "classifier": classifier}
    with pytest.raises(UserError, match=r"of classes 10, but npz:own\.npz has classes 3"):
        run_all(MainConfig.parse(given))
    assert len(mlflow.MlflowClient().search_runs(["0"])) == 1
