"""Studies: definitions that mean something, exact numbers of trials, and an MLflow that says what Optuna says."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, mlflow_run, wait_for
from helpers_studies import SEARCH, TINY, all_under_way, begin, carry_out, children, define, needed, running, trials_of
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from elbolab import Reproduction, Study, load_model
from elbolab.data.splits import Data, load_data
from elbolab.experiment.evaluate import protocol
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.models.priors import PRIORS
from elbolab.support.errors import UserError
from elbolab.support.statistics import mean_and_half_width
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import PARENT, TRIAL
from elbolab.training.trainer import train
from elbolab.tuning.command import load_study
from elbolab.tuning.optuna_storage import DIED, Job, open_study
from elbolab.tuning.trial import _refuse_surplus, _SurplusError


@pytest.fixture
def search(store: Path) -> str:
    return define(store, "search", SEARCH)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ["val/loss"]}, "weighted by beta"),
        ({"metrics": ["test/log_px"]}, "not of the validation split"),
        ({"metrics": ["val/accuracy"]}, "does not compare trials"),
        ({"search": ["sigma"]}, "'val/log_px' is not comparable across sigma"),
        ({"search": [], "configs": [{"likelihood": "bernoulli"}]}, "not comparable across likelihood"),
        ({"search": [], "configs": [{"dataset": "mnist"}]}, "not comparable across dataset"),
        ({"search": ["dataset"]}, "not comparable across dataset"),
        ({"search": ["beta_warmup"]}, "declares no search range"),
        ({"search": ["gamma"]}, "gamma is not a parameter"),
        ({"search": []}, "either search or configs"),
        ({"model": "gan"}, "model='gan' does not exist"),
        ({"base": {"epochs": 0}}, "epochs=0: should be greater than 0"),
        ({"narrow": {"lr": (1e-5, 1e-3)}}, "within its range, 0.0001 to 0.01"),
        ({"narrow": {"beta": (0.5, 1.0)}}, "which search does not"),
        ({"narrow": {"lr": ("a", "b")}}, "must be two bounds"),
        ({"search": [], "configs": [{"seed": 1}]}, "seed is given by seeds"),
        ({"search": [], "configs": [{"lr": 1e-3}], "seeds": [0, 0]}, "must each be listed once"),
        ({"metrics": ["val/kl", "val/distortion"], "pruner": "median"}, "needs one metric, not 2"),
        ({"metrics": ["val/kl"]}, "metric 'val/kl' alone is one side of a trade"),
        ({"metrics": ["val/elbo", "val/elbo"]}, "has one twice"),
        ({"model": "ppca", "search": ["latent_dim"], "base": {"free_sigma": True}}, "free_sigma gives every trial"),
        ({"metrics": ["val/mse"]}, "metric 'val/mse' alone"),
    ],
)
def test_a_study_without_meaning_is_refused_when_it_is_made(values: dict[str, Any], message: str):
    sound = {"model": "vae", "search": ["lr"]}
    Study(**sound)
    with pytest.raises(ValueError, match=message):
        Study(**{**sound, **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"bad\.py cannot be read: SyntaxError: "),
        ("raise SystemExit(3)", r"bad\.py cannot be read: SystemExit: 3$"),
        ("import nosuch", r"bad\.py cannot be read: ModuleNotFoundError: "),
        ("STUDY = 1", r"bad\.py has no STUDY = "),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_study(str(tmp_path / "bad.py"))


TUNED = ("vae", "latent_opt")


def test_the_shipped_studies_are_sound():
    files = sorted(REPOSITORY.glob("studies/*.py"))
    found = dict(load_study(str(file)) for file in files)
    assert {name for name, study in found.items() if isinstance(study, Study)} == {
        "vae_latent_beta_lr",
        "latent_opt_rates",
        "cnn_lr",
        "vae_rate_distortion",
        "vae_training",
        "latent_opt_training",
    }
    # One budget for the two models that are compared.
    alike = {"base", "metrics", "images", "trials"}
    one, other = (found[f"{model}_training"].model_dump(include=alike) for model in TUNED)
    assert one == other
    burda = found["burda2016"]
    assert isinstance(burda, Reproduction)
    # Rate 10^(-i/7) for 3^i passes, from i = 0 to 7.
    runs = {f"iwae50 i={stage}": f"run{stage}" for stage in range(8)}
    stages = [burda.config(name, 0, runs) for name in runs]
    assert [config.epochs for config in stages] == [1, 3, 9, 27, 81, 243, 729, 2187]
    assert [round(7 * log10(1e-3 / config.lr), 9) for config in stages] == [*range(8)]
    assert [getattr(config, "start", None) for config in stages] == [None, *list(runs.values())[:-1]]
    assert {"cremer2018", "amortized_vs_latent"} <= found.keys()
    coursework = found["coursework"]
    assert isinstance(coursework, Reproduction)
    # The figures that the README tells.
    told = re.search(r"got (-[\d.]+)\s+and (-[\d.]+)\s+and concluded", (REPOSITORY / "README.md").read_text())
    assert told is not None
    assert [coursework.references[name]["test/log_px"] for name in ("vae", "latent_opt")] == [
        *map(float, told.groups())
    ]


def test_what_a_study_asks_of_a_gpu_alone_is_part_of_its_protocol(monkeypatch: pytest.MonkeyPatch):
    protocols = set()
    for name in ("burda2016", "cremer2018"):
        for there in (False, True):
            monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
            _, study = load_study(str(REPOSITORY / "studies" / f"{name}.py"))
            assert isinstance(study, Reproduction)
            protocols.add((name, protocol(study.evaluation, study.evaluators)))
    # Else what was evaluated on a CPU would count as done on a GPU.
    assert len(protocols) == 4


def test_a_study_has_as_many_trials_as_asked_for_in_all_and_mlflow_says_so(
    search: str, capsys: pytest.CaptureFixture[str]
):
    parent = carry_out(search, trials=3)
    assert carry_out(search, trials=7) == parent
    done = [trial for trial in trials_of(search) if trial.state == TrialState.COMPLETE]
    best = max(done, key=lambda trial: trial.value or 0)
    end = capsys.readouterr().err
    assert re.search(rf"the best config is that of trial {best.number} \(.*beta={best.params['beta']:.4g}", end)
    assert f"`elbolab study {search} --finalise 3`" in end
    assert carry_out(search, trials=7) == parent
    trials = trials_of(search)
    assert [trial.number for trial in trials] == list(range(7))
    runs = children(parent)
    assert set(runs) == set(range(7))
    states = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
    for trial in trials:
        run = runs[trial.number]
        assert run.info.status == states[trial.state]
        assert run.data.tags["elbolab.study"] == search
        assert run.data.tags.get("pruned") == ("true" if trial.state == TrialState.PRUNED else None)
        assert float(run.data.params["beta"]) == trial.params["beta"]
        if trial.state == TrialState.COMPLETE:
            history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/elbo")
            assert run.data.metrics["objective/elbo"] == trial.value == max(metric.value for metric in history)
    assert mlflow_reader.get_run(parent).status == "FINISHED"
    figures = {Path(path).name for path in artifacts.list_artifacts(parent, "figures")}
    assert figures == {"history.png", "slice.png", "parallel_coordinates.png", "importances.png"}
    assert len(artifacts.read(parent, "trials.csv", Path.read_text).splitlines()) == 8


def test_a_pruned_trial_counts_and_is_killed_in_mlflow(store: Path):
    # The median pruner looks on for five trials; the seventh config has hardly a rate.
    text = f"""
from elbolab import Study
RATES = [1e-3 + 1e-5 * place for place in range(6)] + [1e-8]
STUDY = Study(
    model="vae", base={{{TINY}, "latent_dim": 4}}, configs=[{{"lr": lr}} for lr in RATES],
    metrics=["val/elbo"], pruner="median",
)
"""
    parent = carry_out(define(store, "pruned", text))
    assert [trial.state for trial in trials_of("pruned")] == [TrialState.COMPLETE] * 6 + [TrialState.PRUNED]
    run = children(parent)[6]
    assert (run.info.status, run.data.tags["pruned"]) == ("KILLED", "true")
    assert "objective/elbo" not in run.data.metrics


def test_a_trial_has_no_test_images(search: str, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def watched(model: Any, data: Data, *more: Any) -> None:
        seen.append({name: len(split) for name, split in data.splits.items()})
        train(model, data, *more)

    monkeypatch.setattr("elbolab.tuning.trial.train", watched)
    carry_out(search, trials=1)
    assert seen == [{"train": 40, "val": 10, "test": 0}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"executor": "ray", "workers": 2}, "workers: no effect without executor=local"),
        ({"cpus_per_trial": 2, "gpus_per_trial": 0.5}, "cpus_per_trial, gpus_per_trial: no effect"),
        ({"seeds": 3}, "without finalise"),
    ],
)
def test_what_would_have_no_effect_is_refused(search: str, values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        carry_out(search, **values)


def test_equal_seeds_give_equal_trials_however_often_the_study_stops(store: Path):
    whole, parts = define(store, "whole", SEARCH), define(store, "parts", SEARCH)
    carry_out(whole, trials=13)
    for trials in (1, 11, 13):
        carry_out(parts, trials=trials)
    one, other = trials_of(whole), trials_of(parts)
    assert [trial.params for trial in one] == [trial.params for trial in other]
    assert [trial.values for trial in one] == [trial.values for trial in other]
    carry_out(define(store, "seeded", SEARCH), trials=1, seed=1)
    assert trials_of("seeded")[0].params != one[0].params


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the training of the nth trial from now on interrupted, as Ctrl-C would."""

    def at(count: int) -> None:
        calls = itertools.count(1)

        def interrupted(*arguments: Any) -> None:
            if next(calls) == count:
                raise KeyboardInterrupt
            train(*arguments)

        monkeypatch.setattr("elbolab.tuning.trial.train", interrupted)

    return at


def test_an_interruption_changes_no_later_trial(store: Path, interrupt: Callable[[int], None]):
    whole, cut = define(store, "whole", SEARCH), define(store, "cut", SEARCH)
    carry_out(whole, trials=4)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        carry_out(cut, trials=4)
    carry_out(cut, trials=4)
    kept = [trial for trial in trials_of(cut) if trial.state != TrialState.FAIL]
    assert [trial.params for trial in sorted(kept, key=lambda trial: trial.datetime_start or 0)] == [
        trial.params for trial in trials_of(whole)
    ]


def test_the_evaluation_of_a_trial_is_interrupted_at_once(store: Path, monkeypatch: pytest.MonkeyPatch):
    def evaluated(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the signal waited for the evaluation")

    define(store, "judged", SEARCH.replace('"val/elbo"', '"val/log_px"'))
    monkeypatch.setattr("elbolab.tuning.trial.mean_log_px", evaluated)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            carry_out("judged", trials=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [trial.state for trial in trials_of("judged")] == [TrialState.FAIL, TrialState.WAITING]


def test_a_list_that_is_interrupted_has_each_point_once(store: Path, interrupt: Callable[[int], None]):
    text = f"""
from elbolab import Study
STUDY = Study(model="cnn", base={{{TINY}}}, configs=[{{"lr": 1e-3}}, {{"lr": 1e-2}}], seeds=[3, 4],
  metrics=["val/loss"])
"""
    define(store, "listed", text)
    carry_out("listed", trials=2)
    for count in (1, 2):
        interrupt(count)
        with pytest.raises(KeyboardInterrupt):
            carry_out("listed")
    parent = carry_out("listed")
    finished = [run for run in children(parent).values() if run.info.status == "FINISHED"]
    assert Counter((run.data.params["lr"], run.data.params["seed"]) for run in finished) == {
        (lr, seed): 1 for lr in ("0.001", "0.01") for seed in ("3", "4")
    }


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_not_waited_for(search: str):
    carry_out(search, trials=1, heartbeat=1)
    lost = optuna.load_study(study_name=search, storage="sqlite:///optuna.db").ask()
    carry_out(search, trials=2, heartbeat=1)
    assert trials_of(search)[lost.number].state == TrialState.FAIL
    assert sum(trial.state.is_finished() for trial in trials_of(search)) == 3


def test_a_failing_trial_says_why_and_the_study_goes_on(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(model="vae", base={{{TINY}}}, configs=[{{"lr": 1e30}}, {{"lr": 1e-3}}], metrics=["val/elbo"])
"""
    parent = carry_out(define(store, "failing", text))
    by_config = {trial.params["config"]: trial for trial in trials_of("failing")}
    assert {config: trial.state for config, trial in by_config.items()} == {0: TrialState.FAIL, 1: TrialState.COMPLETE}
    run = children(parent)[by_config[0].number]
    assert run.info.status == "FAILED"
    assert "lower lr" in run.data.tags["failure"]
    assert len(trials_of("failing")) == 2


def test_out_of_memory_costs_one_trial(search: str, monkeypatch: pytest.MonkeyPatch):
    models: list[weakref.ref[Model]] = []

    def exhausted(model: Model, *more: Any) -> None:
        models.append(weakref.ref(model))
        if len(models) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        # Else the next would have no more memory than this one had.
        assert models[0]() is None
        train(model, *more)

    monkeypatch.setattr("elbolab.tuning.trial.train", exhausted)
    parent = carry_out(search, trials=2)
    first, *others = trials_of(search)
    assert first.state == TrialState.FAIL
    assert [trial.state.is_finished() for trial in others] == [True, True]
    assert TrialState.FAIL not in {trial.state for trial in others}
    run = children(parent)[first.number]
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "OutOfMemoryError: CUDA out of memory"


def test_a_study_in_which_everything_fails_ends(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("elbolab.tuning.trial.FAILURES_IN_A_ROW", 4)
    text = SEARCH.replace('"epochs": 2', '"epochs": 2, "sigma": 1e-30')
    with pytest.raises(UserError, match="the last 4 trials failed"):
        carry_out(define(store, "hopeless", text), trials=50)
    assert len(trials_of("hopeless")) == 4
    with pytest.raises(UserError, match="study 'hopeless' has no finished trial"):
        carry_out("hopeless", finalise=1)
    # Whoever starts it again, having mended what was wrong, gets as many tries.
    with pytest.raises(UserError, match="the last 4 trials failed"):
        carry_out("hopeless", trials=50)
    assert len(trials_of("hopeless")) == 8


def test_a_list_of_configs_is_trained_under_every_seed(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(
    model="cnn", base={{{TINY}}}, configs=[{{"lr": 1e-3}}, {{"lr": 1e-2}}], seeds=[3, 4], metrics=["val/accuracy"]
)
"""
    parent = carry_out(define(store, "listed", text), workers=2)
    runs = children(parent).values()
    assert Counter((run.data.params["lr"], run.data.params["seed"]) for run in runs) == {
        (lr, seed): 1 for lr in ("0.001", "0.01") for seed in ("3", "4")
    }
    carry_out("listed", finalise=1, seeds=2)
    carry_out("listed", finalise=1, seeds=2)
    trained = [run for run in mlflow_reader.find_runs("train") if run.tags.get("elbolab.study") == "listed"]
    # Seeds that the study has not seen, and nothing trained twice.
    assert sorted(run.params["seed"] for run in trained) == ["5", "6"]
    assert all("test/accuracy" in run.metrics for run in trained)
    assert load_model("models:/listed/1").config.seed in (5, 6)
    versions = mlflow.MlflowClient().search_model_versions("name = 'listed'")
    assert len(versions) == 1


def test_the_winner_is_told_with_what_is_not_to_be_trusted(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("elbolab.evaluation.log_likelihood.LARGEST_K", -math.inf)
    monkeypatch.setattr("elbolab.evaluation.log_likelihood.LARGEST_VARIANCE", -1.0)
    monkeypatch.setattr("elbolab.evaluation.log_likelihood.DISTRIBUTIONS", (2,))
    base = f"{{{TINY}, 'net': 'mlp', 'hidden': 16, 'latent_dim': 100}}"
    text = f"from elbolab import Study\nSTUDY = Study(model='vae', base={base}, configs=[{{}}], metrics=['val/elbo'])\n"
    carry_out(define(store, "doubtful", text))
    parent = carry_out("doubtful", finalise=1, seeds=2)
    tested = [run.metrics for run in mlflow_reader.find_runs("train")]
    assert any(metrics["test/unreliable"] > 0.5 for metrics in tested)
    mean, half = mean_and_half_width([metrics["test/log_px"] for metrics in tested])
    said = (
        f"test/log_px {mean:.4g} ± {half:.2g}\u2020 (95% interval of the mean over 2 seeds; \u2020 unreliable: may be"
    )
    assert said in capsys.readouterr().out
    assert said in artifacts.read(parent, "final.json", Path.read_text).encode().decode("unicode_escape")


@pytest.mark.scale
def test_a_study_by_mlflow_run_has_one_parent_however_often_it_is_called(search: str, store: Path):
    arguments = ["study", f"study={store}/studies/search.py", f"storage=sqlite:///{store}/optuna.db"]
    for trials in (1, 2):
        done = mlflow_run(store, *arguments, f"trials={trials}")
        assert done.returncode == 0, done.stderr
    runs = mlflow.MlflowClient().search_runs(["0"])
    (parent,) = [run for run in runs if run.data.tags["elbolab.kind"] == "study"]
    assert set(children(parent.info.run_id)) == {0, 1}
    # MLflow made a run for the second call, which is shown under the study's.
    (call,) = [run for run in runs if run.data.tags["elbolab.kind"] == "study call"]
    assert call.data.tags[PARENT] == parent.info.run_id
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


def test_two_metrics_give_a_front(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(model="vae", base={{{TINY}}}, search=["beta", "lr"], metrics=["val/kl", "val/distortion"], trials=4)
"""
    parent = carry_out(define(store, "front", text))
    for number, run in children(parent).items():
        kl, distortion = trials_of("front")[number].values
        assert run.data.metrics["objective/kl"] == kl == run.data.metrics["val/kl"]
        assert kl + distortion == pytest.approx(-run.data.metrics["val/elbo"])
    figures = {Path(path).name for path in artifacts.list_artifacts(parent, "figures")}
    assert figures == {"pareto_front.png", "importances_kl.png", "importances_distortion.png"}
    with pytest.raises(UserError, match="finalise needs a study of one metric"):
        carry_out("front", finalise=1)
    assert mlflow_reader.get_run(parent).status == "FINISHED"


def test_log_px_is_measured_on_validation_images(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(model="ppca", base={{{TINY}, "epochs": 1}}, configs=[{{"latent_dim": 4}}], images=10)
"""
    parent = carry_out(define(store, "exact", text))
    run = children(parent)[0]
    # The ELBO of an exact posterior is log p(x), up to the noise of its one sample.
    assert run.data.metrics["objective/log_px"] == pytest.approx(run.data.metrics["val/elbo"], abs=3)


def test_a_trial_judged_by_log_px_is_pruned_by_its_model_s_own_bound(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(model="iwae", base={{{TINY}}}, search=["iw_samples"], images=10, samples=10, trials=1)
"""
    parent = carry_out(define(store, "bound", text))
    (trial,), run = trials_of("bound"), children(parent)[0]
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/iw_bound")
    assert trial.intermediate_values == {metric.step: metric.value for metric in history}


@pytest.mark.scale
def test_what_a_search_by_log_px_finds_is_judged_by_it_again_tested_and_registered(store: Path):
    text = f"""
from elbolab import Study
STUDY = Study(
    model="ppca", base={{{TINY}, "epochs": 1}}, search=["latent_dim"], narrow={{"latent_dim": (2, 8)}}, images=10,
    trials=2,
)
"""
    parent = carry_out(define(store, "judged", text))
    assert carry_out("judged", finalise=2, seeds=2) == parent
    rows = artifacts.read(parent, "finalists.parquet", pd.read_parquet).to_dict("records")
    assert Counter(row["trial"] for row in rows) == {0: 2, 1: 2}
    val = load_data("mnist5k", Path(), train_size=40, val_size=10, test_size=10).val.batch(torch.arange(10))
    for row in rows:
        model = load_model(row["run"])
        assert isinstance(model, LatentModel)
        exact = model.exact_log_px(val.x)
        assert exact is not None
        assert row["val/log_px"] == pytest.approx(exact.mean().item(), rel=1e-5)
    # A closed form is the same under every seed.
    best = max(rows, key=lambda row: row["val/log_px"])["trial"]
    final = json.loads(artifacts.read(parent, "final.json", Path.read_text))
    assert final["trial"] == best
    tested = {row["run"] for row in rows if "test/log_px" in mlflow_reader.get_run(row["run"]).metrics}
    assert tested == {row["run"] for row in rows if row["trial"] == best}
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'judged'")
    assert version.run_id == final["run"] in tested
    assert load_model("models:/judged/1").config == load_model(final["run"]).config


def test_sync_brings_mlflow_up_to_date_and_doubles_nothing(search: str):
    parent = carry_out(search, trials=3)
    client = mlflow.MlflowClient()
    runs = children(parent)
    client.delete_run(runs[0].info.run_id)
    client.update_run(runs[1].info.run_id, status="RUNNING")
    twin = client.create_run(
        runs[2].info.experiment_id,
        tags={key: runs[2].data.tags[key] for key in (PARENT, TRIAL, "elbolab.kind", "elbolab.study")},
    )
    for _ in range(2):
        assert carry_out(search, sync=True) == parent
        after = children(parent)
        assert set(after) == {0, 1, 2}
        assert {run.info.status for run in after.values()} <= {"FINISHED", "KILLED"}
        assert after[2].info.run_id == runs[2].info.run_id
        first = trials_of(search)[0]
        assert after[0].data.metrics["objective/elbo"] == first.value
        assert after[0].data.params["lr"] == str(first.params["lr"])
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"


def test_sync_leaves_a_study_that_was_interrupted_killed(search: str, interrupt: Callable[[int], None]):
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        carry_out(search)
    parent = carry_out(search, sync=True)
    assert mlflow_reader.get_run(parent).status == "KILLED"
    assert set(children(parent)) == {0, 1}


def test_a_study_that_has_not_begun_is_not_begun_by_its_end(search: str):
    for values in ({"sync": True}, {"finalise": 1}):
        with pytest.raises(UserError, match=r"study 'search' has not begun on sqlite:///.*; carry it out first"):
            carry_out(search, **values)
    assert mlflow.MlflowClient().search_runs(["0"]) == []
    carry_out(search, trials=1)
    assert len(trials_of(search)) == 1


def test_no_two_trials_of_hyperband_are_equal(store: Path):
    define(store, "bands", SEARCH.replace("trials=4", "trials=6, pruner='hyperband'"))
    carry_out("bands")
    assert len({str(trial.params) for trial in trials_of("bands")}) == 6


def test_another_definition_under_the_same_name_is_refused(store: Path, search: str):
    carry_out(search, trials=1)
    with pytest.raises(UserError, match=r"begun on .* with heartbeat=10"):
        carry_out(search, heartbeat=1)
    define(store, "search", SEARCH.replace('"beta", ', ""))
    with pytest.raises(UserError, match=r"begun on .* with another definition"):
        carry_out(search)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"storage": "postgres://nowhere"}, "cannot be opened"), ({"storage": "sqlite:////nowhere/o.db"}, "be written")],
)
def test_a_storage_out_of_reach_is_one_line(search: str, values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        carry_out(search, **values)


@pytest.mark.scale
def test_ctrl_c_leaves_a_study_that_goes_on_with_the_same_trials(store: Path):
    slow = SEARCH.replace('"epochs": 2', '"epochs": 40').replace('"train_size": 40', '"train_size": 400')
    define(store, "slow", slow)
    process = begin(store, "slow", "--trials", "2")
    wait_for(lambda: running("slow"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (stopped, queued) = trials_of("slow")
    assert (stopped.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.params == stopped.params
    parent = optuna.load_study(study_name="slow", storage="sqlite:///optuna.db").user_attrs["mlflow_run"]
    assert mlflow_reader.get_run(parent).status == "KILLED"
    assert carry_out("slow", trials=1) == parent
    assert [run.info.status for _, run in sorted(children(parent).items())] == ["FAILED", "FINISHED"]
    assert children(parent)[0].data.tags["failure"] == "interrupted"
    assert mlflow_reader.get_run(parent).status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_a_new_trial_makes_way_for_the_retry_that_was_queued_just_after_it(store: Path):
    define(store, "late", SEARCH)
    kind = load_study("late")[1]
    assert isinstance(kind, Study)
    job = Job("late", kind, "sqlite:///optuna.db", target=1, seed=0, heartbeat=10)
    study, _ = open_study(job)
    died = study.ask()
    job.study.suggest(died)
    study.tell(died, state=TrialState.FAIL)
    new = study.ask()
    _refuse_surplus(job, new)
    RetryHeartbeatStaleTrialCallback(max_retry=1)(study, trials_of("late")[died.number])
    with pytest.raises(_SurplusError):
        _refuse_surplus(job, new)
    again = study.ask()
    assert again.params == died.params
    study.tell(new, state=TrialState.FAIL)
    _refuse_surplus(job, again)


@pytest.mark.filterwarnings("ignore")
def test_a_new_trial_waits_for_the_retry_of_one_that_has_just_died(store: Path):
    define(store, "gap", SEARCH)
    kind = load_study("gap")[1]
    assert isinstance(kind, Study)
    job = Job("gap", kind, "sqlite:///optuna.db", target=1, seed=0, heartbeat=10)
    study, _ = open_study(job)
    died = study.ask()
    job.study.suggest(died)
    study.tell(died, state=TrialState.FAIL)
    queue = RetryHeartbeatStaleTrialCallback(max_retry=1)
    later = threading.Timer(1, queue, (study, trials_of("gap")[died.number]))
    new = study.ask()
    later.start()
    with pytest.raises(_SurplusError):
        _refuse_surplus(job, new)
    later.join()
    # Whoever failed it may have died before it queued the retry.
    study.tell(new, state=TrialState.FAIL)
    retry = study.ask()
    study.tell(retry, state=TrialState.FAIL)
    other = study.ask()
    _refuse_surplus(job, other)


@pytest.mark.scale
def test_a_killed_worker_costs_its_trial_a_retry_and_nothing_else(store: Path):
    define(
        store, "killed", SEARCH.replace('"epochs": 2', '"epochs": 60').replace("trials=4", "trials=4, pruner='none'")
    )
    # Four of these heartbeats are longer than a busy machine keeps a living worker from its next.
    process = begin(store, "killed", "--workers", "2", "--heartbeat", "3")
    wait_for(lambda: all_under_way(2, "killed"))
    workers = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "another takes its place" in errors
    trials = needed("killed")
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 4, TrialState.FAIL: 1}
    lost = next(trial for trial in trials if trial.state == TrialState.FAIL)
    (retry,) = [trial for trial in trials if trial.system_attrs.get("retry_history") == [lost.number]]
    assert retry.params == lost.params
    runs = children(out.split()[-1])
    assert Counter(run.info.status for run in runs.values()) == {"FINISHED": 4, "FAILED": 1}
    assert runs[lost.number].data.tags["failure"] == DIED


def test_a_search_of_priors_has_those_that_the_model_can_have():
    vae, table = (Study(model=name, search=("prior",)).space["prior"] for name in ("vae", "latent_opt"))
    assert vae.choices == tuple(PRIORS)  # pyright: ignore[reportAttributeAccessIssue]
    assert table.choices == ("normal", "mixture", "flow")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="has no encoder; choose one of normal, mixture, flow"):
        Study.parse({"model": "latent_opt", "search": ["prior"], "narrow": {"prior": ["normal", "vamp"]}})


def test_a_search_goes_on_with_the_choices_that_it_began_with():
    study = optuna.create_study()
    study.add_trial(
        optuna.trial.create_trial(
            params={"prior": "mixture"},
            distributions={"prior": optuna.distributions.CategoricalDistribution(["normal", "mixture"])},
            value=1.0,
        )
    )
    search = Study(model="vae", search=("prior",))
    found = [search.suggest(study.ask()) for _ in range(12)]
    assert {config.prior for config in found} <= {"normal", "mixture"}  # pyright: ignore[reportAttributeAccessIssue]
