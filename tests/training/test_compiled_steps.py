"""Compiled steps: only where they repay themselves, with the values of those that are not, and no training without."""

from pathlib import Path
from typing import Any

import pytest
import torch

from elbolab.experiment.train import prepare
from elbolab.models import MODELS
from elbolab.training import compiled_steps
from elbolab.training.compiled_steps import CompiledSteps
from elbolab.training.trainer import Event, train

SMALL: dict[str, Any] = {"train_size": 50, "val_size": 10, "test_size": 10, "batch_size": 20, "epochs": 3}
DENSE: dict[str, Any] = {"net": "mlp", "hidden": 8, "latent_dim": 3}


def prepared(name: str, **fields: Any) -> Any:
    known = MODELS[name].Config.model_fields
    values = {key: value for key, value in (SMALL | DENSE | fields).items() if key in known}
    return prepare(name, MODELS[name].Config.parse(values))


def trained(folder: Path, name: str = "vae", **fields: Any) -> dict[str, torch.Tensor]:
    model, data, _ = prepared(name, **fields)
    folder.mkdir(exist_ok=True)
    train(model, data, lambda _: None, folder, CompiledSteps())
    return model.state_dict()


def test_only_long_trainings_of_dense_nets_are_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: name)

    def worth(name: str, **fields: Any) -> bool:
        model, data, tags = prepared(name, schedule="cosine", **fields)
        assert tags["compiled"] == str(CompiledSteps().compiles(model, data)).lower()
        return CompiledSteps().compiles(model, data)

    # Two whole batches an epoch.
    long = compiled_steps.REPAID_AFTER // 2 + 1
    assert worth("vae", epochs=long)
    assert worth("iwae", epochs=long)
    assert worth("hierarchical", epochs=long)
    for name, fields in (
        ("vae", {"epochs": long - 1}),
        ("vae", {"epochs": long, "compile": "no"}),
        ("vae", {"epochs": long, "net": "conv"}),
        ("vae", {"epochs": long, "batch_size": 64}),
        ("cnn", {"epochs": long}),
        ("iwae", {"epochs": long, "gradient": "dreg"}),
        ("latent_opt", {"epochs": long}),
        ("semi_amortized", {"epochs": long}),
        ("ppca", {}),
    ):
        assert not worth(name, **fields), (name, fields)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not worth("vae", epochs=long)


def test_a_compiler_that_fails_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(objective: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            torch.rand(3)
            raise RuntimeError("no header\nand much more")

        return call

    expected = trained(tmp_path / "plain", likelihood="bernoulli")
    monkeypatch.setattr(compiled_steps, "REPAID_AFTER", 0)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("torch.compile", fails)
    got = trained(tmp_path / "failed", likelihood="bernoulli")
    assert capsys.readouterr().err == "elbolab: steps are not compiled: no header\n"
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.scale
@pytest.mark.parametrize(
    ("name", "likelihood"),
    [("vae", "bernoulli"), ("iwae", "bernoulli"), ("vae", "discretised_logistic"), ("vae", "gaussian")],
)
def test_compiled_steps_are_those_that_are_not_and_one_graph_serves_them_all(
    name: str, likelihood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A KL term of growing weight, pixels drawn at every visit, a smaller last batch.
    fields = {"likelihood": likelihood, "sigma": "learned", "beta_warmup": 3.0, "precision": "float32"}
    expected = trained(tmp_path / "plain", name, **fields)
    monkeypatch.setattr(compiled_steps, "REPAID_AFTER", 0)
    torch._dynamo.utils.counters.clear()
    got = trained(tmp_path / "compiled", name, **fields)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.scale
def test_a_compiled_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_steps, "REPAID_AFTER", 0)
    monkeypatch.setattr("elbolab.training.resume_state.LEAST_SECONDS", 0)
    monkeypatch.setattr("elbolab.training.resume_state.TIMES_ITS_COST", 0)
    expected = trained(tmp_path / "whole")
    model, data, _ = prepared("vae")

    def report(event: Event) -> None:
        if event.epoch == 2:
            raise ConnectionError

    (folder := tmp_path / "cut").mkdir()
    with pytest.raises(ConnectionError):
        train(model, data, report, folder, CompiledSteps())
    got = trained(folder)
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
