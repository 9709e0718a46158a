"""Which runs a report is made of, told from their parameters, tags and metrics alone."""

import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from elbolab.report.select import differences, latest_runs, variants_of, with_seeds
from elbolab.support.errors import UserError
from elbolab.tracking.mlflow_reader import RunRecord, get_run

TAGS = {
    "elbolab.kind": "train", "data.name": "mnist5k", "data.digest": "d", "observation_model": "gaussian",
    "converged": "true", "evaluation.method": "auto", "evaluation.tolerance": "0.3", "evaluation.samples": "1000",
    "evaluation.images": "100", "evaluation.seed": "0",
}  # fmt: skip
PARAMS = {"model": "vae", "lr": "0.001", "epochs": "200", "schedule": "plateau", "seed": "0"}


@pytest.fixture
def made(store: Path) -> Any:
    """Make a finished run, the newest so far; metrics None leave it unevaluated."""
    clock = int(time.time() * 1000) - 1_000_000

    def make(params: dict[str, str] | None = None, tags: dict[str, str] | None = None, **metrics: float) -> RunRecord:
        nonlocal clock
        clock += 1000
        client = mlflow.MlflowClient()
        run = client.create_run("0", clock, {**TAGS, **(tags or {})})
        for key, value in {**PARAMS, **(params or {})}.items():
            client.log_param(run.info.run_id, key, value)
        for key, value in ({"test/log_px": -50.0, "val/elbo": -60.0} | metrics).items():
            client.log_metric(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, end_time=clock + 500)
        return get_run(run.info.run_id)

    return make


def test_a_value_is_the_same_however_it_was_typed(made: Any):
    """`mlflow run -P lr=1e-3` logs what was typed."""
    base = made()
    assert differences(made({"lr": "1e-3"}), base) == []
    assert differences(made({"lr": "1e-2"}), base) == ["lr"]
    assert differences(made({"beta": "2"}), base) == ["beta"]
    assert differences(made({"seed": "3", "device": "cuda", "train_size": "10", "image_size": "8"}), base) == []


def test_each_value_of_each_field_is_an_ablation(made: Any):
    base = made()
    runs = [made({field: value}) for field, value in (("lr", "0.01"), ("beta", "2"), ("lr", "0.1"), ("beta", "2"))]
    pool = sorted([*runs, made({"lr": "0.3", "beta": "3"}), made({"model": "iwae"})], key=lambda run: -run.start)
    found = variants_of(base, pool)
    assert [(field, group[0].params[field]) for field, group in found] == [("beta", "2"), ("lr", "0.01"), ("lr", "0.1")]
    # Of two that are alike the newer one.
    assert found[0][1][0].id == runs[3].id


def test_epochs_are_a_bound_unless_they_are_all_that_differs(made: Any):
    base = made()
    both, alone = made({"epochs": "300", "lr": "0.01"}), made({"epochs": "300"})
    assert [field for field, _ in variants_of(base, [both])] == ["lr"]
    assert [field for field, _ in variants_of(base, [alone])] == ["epochs"]
    fixed = made({"schedule": "cosine"})
    assert variants_of(fixed, [made({"schedule": "cosine", "epochs": "300", "lr": "0.01"})]) == []
    # A fixed number of epochs is no bound: then two fields differ.
    assert variants_of(base, [made({"schedule": "cosine", "epochs": "300"})]) == []


@pytest.mark.parametrize("name", ["method", "tolerance", "samples", "images", "seed"])
def test_seeds_are_averaged_where_all_is_evaluated_alike(made: Any, name: str):
    base = made()
    alike, other = made({"seed": "1"}), made({"seed": "2"}, {f"evaluation.{name}": "7"})
    assert [run.id for run in with_seeds(base, [other, alike])] == [base.id, alike.id]


def test_the_latest_is_the_one_that_has_converged_unless_it_is_worse(made: Any, capsys: pytest.CaptureFixture[str]):
    older, converged = made(), made()
    newest = made({"lr": "1"}, {"converged": "false"}, **{"val/elbo": -70.0})
    # A trial of a study is no training to compare.
    made({"lr": "1"}, {"elbolab.kind": "trial"})
    assert [group[0].id for group in latest_runs(None)] == [converged.id]
    said = capsys.readouterr().err
    assert f"the newest run of vae, {newest.id[:8]}, has not converged; {converged.id[:8]} is compared" in said
    better = made({"lr": "1"}, {"converged": "false"}, **{"val/elbo": -40.0})
    assert [group[0].id for group in latest_runs(None)] == [better.id]
    assert older.id not in capsys.readouterr().err


def test_the_datasets_that_there_are_are_named(made: Any):
    made()
    made(tags={"data.name": "mnist"})
    with pytest.raises(UserError, match=r"on dataset kmnist \(there are runs on mnist, mnist5k\)"):
        latest_runs("kmnist")
