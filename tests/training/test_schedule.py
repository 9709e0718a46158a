"""When a training ends: the rule itself, the rates by it, and whole trainings that it ends."""

import math
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mlflow
import pytest
import torch
from helpers_studies import carry_out, children, define, trials_of
from killed_trainings import outcome
from optuna.trial import TrialState

from elbolab.config.schema import Config
from elbolab.data.splits import Data
from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.training import resume_state, trainer
from elbolab.training.checkpoint import epoch_of
from elbolab.training.progress import Progress
from elbolab.training.schedule import Schedule, fewest_epochs, has_stopped_improving
from elbolab.training.trainer import Event, train

TINY: dict[str, Any] = {
    "train_size": 40,
    "val_size": 10,
    "test_size": 10,
    "batch_size": 8,
    "latent_dim": 4,
    "net": "mlp",
    "hidden": 16,
}
# Whatever the scores: two epochs at the first rate, and two at a tenth of it.
SHORT: dict[str, Any] = {"schedule": "plateau", "patience": 1, "patience_steps": 0, "min_improvement": 1e9, "epochs": 9}


def no_warmup(epochs: float) -> float:
    return 1.0


def fed(config: Config, scores: list[float]) -> Schedule:
    return Schedule(config, no_warmup, scores=scores)


@pytest.mark.parametrize(("slope", "stopped"), [(0.0099, True), (0.0101, False), (-1.0, True)])
def test_scores_on_a_line_improve_by_patience_times_its_slope(slope: float, stopped: bool):
    scores = [slope * epoch for epoch in range(20)]
    assert has_stopped_improving(scores, 10, 0.1) == stopped
    # What was before the two windows does not matter.
    assert has_stopped_improving([-1e3, *scores], 10, 0.1) == stopped
    assert not has_stopped_improving(scores[1:], 10, 0.1)


@pytest.mark.parametrize("improvement", [0.0, 0.2, 0.6])
def test_under_noise_the_rule_errs_as_often_as_the_difference_of_two_means(improvement: float):
    patience, sigma, least, many = 10, 0.3, 0.1, 4000
    generator = torch.Generator().manual_seed(0)
    series = sigma * torch.randn(many, 2 * patience, generator=generator)
    series[:, patience:] += improvement
    found = sum(has_stopped_improving(scores, patience, least) for scores in series.tolist()) / many
    expected = NormalDist(improvement, sigma * math.sqrt(2 / patience)).cdf(least)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(max(expected * (1 - expected), 1 / many) / many))


def test_rates_are_a_tenth_when_the_score_stops_improving_and_the_training_ends_when_it_does_again():
    config = Config(schedule="plateau", epochs=200, patience=5, min_improvement=0.1)
    # The means of successive windows of -exp(-n / 10) differ by exp(-n / 10) (exp(5 / 10) - 1) mean(exp(i / 10)).
    mean = sum(math.exp(i / 10) for i in range(5)) / 5
    stop = math.ceil(10 * math.log(mean * (math.exp(0.5) - 1) / 0.1)) + 1
    rising = [-math.exp(-epoch / 10) for epoch in range(stop)]
    for done in range(stop):
        schedule = fed(config, rising[:done])
        assert (schedule.last, schedule.is_open) == (200, True)
        assert schedule.factor(done) == schedule.factor(done + 0.99) == 1
    # A lower rate lets it rise again.
    schedule = fed(config, rising + [1 + score for score in rising[:-1]])
    assert (schedule.last, schedule.is_open) == (200, True)
    schedule.add(1 + rising[-1])
    assert (schedule.last, schedule.is_open, schedule.converged) == (2 * stop, False, True)
    assert [schedule.factor(epochs) for epochs in (0, stop - 0.01, stop, 2 * stop - 0.01)] == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize(("epochs", "fall"), [(30, 20), (20, 10), (9, 5), (1, 1)])
def test_what_is_ended_by_its_epochs_has_low_rates_in_the_last_of_them_and_is_not_converged(epochs: int, fall: int):
    config = Config(schedule="plateau", epochs=epochs, patience=5)
    rising = [float(epoch) for epoch in range(epochs)]
    assert [fed(config, rising[:done]).is_open for done in range(epochs + 1)] == [True] * epochs + [False]
    schedule = fed(config, rising)
    assert (schedule.last, schedule.converged) == (epochs, False)
    assert [schedule.factor(epoch) for epoch in range(epochs)] == [1] * fall + [0.1] * (epochs - fall)
    # That it levels off at the low rate alone is no sign: it might not have at the first.
    assert not fed(config, rising[:fall] + [0.0] * (epochs - fall)).converged


def test_a_schedule_is_the_scores_alone():
    config = Config(schedule="plateau", epochs=60, patience=3)
    scores = [-math.exp(-epoch / 4) for epoch in range(40)]
    whole = fed(config, [])
    for epoch, score in enumerate(scores, 1):
        whole.add(score)
        again = fed(config, scores[:epoch])
        assert (again.last, again.converged, again.scores) == (whole.last, whole.converged, whole.scores)
        assert again.factor(epoch + 0.5) == whole.factor(epoch + 0.5)


def test_scores_under_a_rising_weight_of_the_kl_are_not_judged():
    """With beta above 1 the ELBO falls while the weight rises, which is no sign of an end."""
    config = Config(schedule="plateau", epochs=60, patience=5)
    falling = [-float(epoch) for epoch in range(20)]
    rises = Schedule(config, lambda epochs: min(1.0, epochs / 15), scores=falling)
    assert [rises.factor(20), fed(config, falling).factor(10)] == [1, 0.1]
    for epoch in range(20, 25):
        assert rises.factor(epoch) == 1
        rises.add(-float(epoch))
    assert rises.factor(25) == 0.1


def test_of_short_epochs_more_are_waited_for():
    """Ten epochs of four steps are no evidence that a training has converged."""

    def ended(epochs: int, steps: int) -> tuple[int, bool]:
        schedule = Schedule(Config(schedule="plateau", epochs=epochs), no_warmup, steps=steps)
        while len(schedule.scores) < schedule.last:
            schedule.add(0.0)
        return schedule.last, schedule.converged

    # Two windows before the rates fall and two after.
    assert [ended(200, steps) for steps in (1000, 60, 0)] == [(20, True)] * 3
    assert ended(400, 4) == (300, True)
    assert ended(200, 4) == (200, False)


def test_fixed_epochs_are_judged_by_scores_at_rates_that_still_move_the_weights():
    flat, rising = [0.0] * 60, [float(epoch) for epoch in range(60)]
    for schedule in ("cosine", "constant", "cooldown", "staged"):
        config = Config(schedule=schedule, epochs=60, patience=10)  # pyright: ignore[reportArgumentType]
        assert fed(config, flat).converged
        assert not fed(config, rising).converged
        assert (fed(config, []).last, fed(config, []).is_open) == (60, False)
    # The rate is below half its mean from two thirds of a cosine on.
    levels_off = [min(float(epoch), 40.0) for epoch in range(60)]
    assert has_stopped_improving(levels_off, 9, 0.1)
    assert not fed(Config(epochs=60, patience=9), levels_off).converged
    assert fed(Config(epochs=60, patience=9, schedule="constant"), levels_off).converged
    assert Schedule(Config(epochs=1), no_warmup, is_closed=True, scores=[0.0]).converged


@pytest.mark.parametrize("fields", [SHORT, {**SHORT, "epochs": 3}, {"epochs": 9}])
def test_no_training_has_fewer_epochs_than_the_fewest(fields: dict[str, Any]):
    config = Config.parse({**fields, "min_improvement": 0})
    ends = {fed(config, [float(epoch) for epoch in range(9)][: config.epochs]).last}
    flat = fed(config, [])
    while len(flat.scores) < flat.last:
        flat.add(0.0)
    assert min(ends | {flat.last}) == fewest_epochs(config)


@pytest.mark.parametrize("name", ["vae", "latent_opt", "cnn"])
def test_a_training_ends_with_the_epoch_that_its_schedule_calls_the_last(name: str, digits: Data, tmp_path: Path):
    kind = MODELS[name]
    fields = {**TINY, **SHORT, "beta_warmup": 0}
    config = kind.Config.parse({key: value for key, value in fields.items() if key in kind.Config.model_fields})
    torch.manual_seed(0)
    events: list[Event] = []
    train(kind(config, digits.spec), digits, events.append, tmp_path)
    assert [event.epoch for event in events] == [1, 2, 3, 4]
    assert [(event.epochs, event.is_open) for event in events] == [*[(9, True)] * 3, (4, False)]
    assert [event.converged for event in events] == [None, None, None, True]
    assert epoch_of(tmp_path / "last.safetensors") == 4
    assert [event.metrics["train/lr"] / config.lr for event in events] == pytest.approx([1, 1, 0.1, 0.1])
    steps = 8 * (2 if name == "latent_opt" else 1)
    assert [event.metrics["train/steps"] for event in events] == [steps * epoch for epoch in (1, 2, 3, 4)]
    seconds = [event.metrics["train/seconds"] for event in events]
    assert all(before < after for before, after in pairwise([0.0, *seconds]))


def test_a_run_says_whether_it_converged_and_its_steps_and_seconds_go_on(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    config = MODELS["vae"].Config.parse({**TINY, **SHORT, "beta_warmup": 0})
    expected = outcome(train_model("vae", config))
    report = tracking.RunWriter.report

    def fail(self: tracking.RunWriter, event: Event) -> None:
        report(self, event)
        if event.epoch == 3:
            raise RuntimeError("at the low rate")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.RunWriter, "report", fail)
        with pytest.raises(RuntimeError, match="low rate"):
            train_model("vae", config)
    (failed,) = mlflow.MlflowClient().search_runs(["0"], "attributes.status = 'FAILED'")
    assert "converged" not in failed.data.tags
    run = mlflow_reader.get_run(resume(failed.info.run_id))
    assert outcome(run.id) == expected
    assert (run.tags["converged"], run.tags["last_epoch"]) == ("true", "4")
    assert run.metrics["train/steps"] == 4 * 5
    history = mlflow.MlflowClient().get_metric_history(run.id, "train/seconds")
    assert all(before.value < after.value for before, after in pairwise(history))
    ended = mlflow_reader.get_run(train_model("ppca", MODELS["ppca"].Config.parse({**without_net(TINY)})))
    assert (ended.tags["converged"], ended.metrics["train/steps"]) == ("true", 0)
    fixed = mlflow_reader.get_run(train_model("vae", MODELS["vae"].Config.parse({**TINY, "epochs": 1})))
    assert fixed.tags["converged"] == "false"


def without_net(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key in MODELS["ppca"].Config.model_fields}


def test_trials_end_by_themselves_or_are_pruned_before(store: Path):
    # The median pruner looks on for five trials; the last config has hardly a rate.
    base = {**TINY, **SHORT, "beta_warmup": 0}
    text = f"""
from elbolab import Study
RATES = [1e-3 + 1e-5 * place for place in range(5)] + [1e-8]
STUDY = Study(
    model="vae", base={base}, configs=[{{"lr": lr}} for lr in RATES], metrics=["val/elbo"], pruner="median"
)
"""
    runs = children(carry_out(define(store, "plateau", text)))
    *ended, pruned = trials_of("plateau")
    assert [list(trial.intermediate_values) for trial in ended] == [[1, 2, 3, 4]] * 5
    assert pruned.state == TrialState.PRUNED
    tags = [(run.data.tags.get("converged"), run.data.tags.get("last_epoch")) for _, run in sorted(runs.items())]
    assert tags == [("true", "4")] * 5 + [(None, None)]


def test_progress_says_at_most_while_the_end_is_unknown(capsys: pytest.CaptureFixture[str]):
    metrics = {"train/loss": 2.0, "val/loss": 3.0}
    with Progress("vae", 9) as progress:
        progress(Event(1, 9, True, None, True, metrics, {}, 80.0))
        progress(Event(2, 2, False, True, True, metrics, {}, 0.0))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "vae: epoch 1 of at most 9, loss 2, validation 3, at most 80 s left"
    assert second == "vae: epoch 2/2, loss 2, validation 3, 0 s left"


def test_the_model_is_that_of_the_highest_score_and_of_equal_ones_the_first(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = [-50.0, -50.5, -50.0, -49.9, -50.8, -49.9]
    validate = trainer._validate

    def scored(model: Any, split: Any, epoch: int, backend: Any) -> tuple[dict[str, float], float]:
        return validate(model, split, epoch, backend)[0], scores[epoch - 1]

    monkeypatch.setattr(trainer, "_validate", scored)
    fields = {"dataset": "mnist5k", "latent_dim": 2, "net": "mlp", "hidden": 3, "schedule": "constant", "epochs": 6}
    model = MODELS["vae"](MODELS["vae"].Config.parse(fields), digits.spec)
    best: list[bool] = []
    kept: list[int] = []

    def report(event: Event) -> None:
        best.append(event.best)
        kept.append(epoch_of(tmp_path / "best.safetensors"))

    train(model, digits, report, tmp_path)
    assert best == [True, False, False, True, False, False]
    assert kept == [1, 1, 1, 4, 4, 4]


def test_progress_ends_with_what_was_reached(capsys: pytest.CaptureFixture[str]):
    metrics = {"train/loss": 2.0, "val/loss": 3.0}
    with Progress("vae", 2) as progress:
        progress(Event(1, 2, False, None, True, metrics | {"val/loss": 1.5}, {}, 0.0))
        progress(Event(2, 2, False, False, False, metrics, {}, 0.0))
    capsys.readouterr()
    progress.say_outcome(best=1, last=2)
    reached = "vae: epoch 1 of 2 (loss 2, validation 1.5) is the model; its score may improve further\n"
    assert capsys.readouterr().err == reached
    # The best epoch was in another process, before the training was resumed.
    with Progress("vae", 2) as progress:
        progress(Event(2, 2, False, True, False, metrics, {}, 0.0))
    capsys.readouterr()
    progress.say_outcome(best=1, last=2)
    assert capsys.readouterr().err == "vae: epoch 1 of 2 is the model; converged\n"
