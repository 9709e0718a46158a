"""Trainings beside each other: each ends as it would alone, whether their steps are computed in turn or as one."""

import math
import signal
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pytest
import torch
from helpers_studies import carry_out, children, define, trials_of

from elbolab.config.schema import StudyConfig
from elbolab.data.splits import Data, load_data
from elbolab.models import MODELS
from elbolab.models.base import Model
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.training.backend import Backend, Step
from elbolab.training.populations import take_turns
from elbolab.training.trainer import Event, train

MEMBERS: list[dict[str, Any]] = [
    {"seed": 0, "lr": 1e-3},
    {"seed": 1, "lr": 3e-3, "epochs": 3, "clip": 1.0},
    {"seed": 2, "lr": 2e-3, "schedule": "constant"},
]
TIMES = {"train/seconds", "train/images_per_s"}
TINY = '"epochs": 2, "train_size": 40, "val_size": 10, "test_size": 10, "latent_dim": 4, "net": "mlp"'


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many turns as these few steps allow."""
    monkeypatch.setattr("elbolab.training.populations.STEPS_AT_A_TURN", 2)


@pytest.fixture(scope="module")
def data() -> Data:
    """Of a size that leaves a last batch of another length."""
    return load_data("mnist5k", Path(), train_size=72, val_size=20, test_size=20)


def make(name: str, data: Data, fields: dict[str, Any]) -> Model:
    kind = MODELS[name]
    # In bfloat16 a difference in rounding shows more.
    fields = {"epochs": 2, "batch_size": 32, "latent_dim": 6, "precision": "float32", **fields}
    config = kind.Config.parse({key: value for key, value in fields.items() if key in kind.Config.model_fields})
    torch.manual_seed(config.seed)
    return kind(config, data.spec)


def alone(model: Model, data: Data) -> list[Event]:
    events: list[Event] = []
    with TemporaryDirectory() as folder:
        train(model, data, events.append, Path(folder))
    return events


def beside(models: list[Model], data: Data, folder: Path, as_one: bool) -> tuple[list[list[Event]], dict[int, Any]]:
    events: list[list[Event]] = [[] for _ in models]
    folders = [folder / str(place) for place in range(len(models))]
    for each in folders:
        each.mkdir(parents=True)
    trainings = [
        partial(train, model, data, heard.append, each)
        for model, heard, each in zip(models, events, folders, strict=True)
    ]
    return events, dict(take_turns(trainings, as_one))


def figures(events: list[Event]) -> list[dict[str, float]]:
    return [{key: value for key, value in event.metrics.items() if key not in TIMES} for event in events]


@pytest.mark.parametrize("name", MODELS)
def test_in_turn_each_is_bit_for_bit_what_it_is_alone(name: str, data: Data, tmp_path: Path):
    expected = [make(name, data, fields) for fields in MEMBERS]
    histories = [alone(model, data) for model in expected]
    found = [make(name, data, fields) for fields in MEMBERS]
    events, ended = beside(found, data, tmp_path / "beside", as_one=False)
    assert ended == {0: None, 1: None, 2: None}
    for one, other, history, heard in zip(expected, found, histories, events, strict=True):
        assert figures(history) == figures(heard)
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vae", {}),
        ("vae", {"net": "mlp", "likelihood": "bernoulli"}),
        ("vae", {"net": "mlp", "likelihood": "discretised_logistic"}),
        ("vae", {"net": "mlp", "sigma": "learned"}),
        ("iwae", {"net": "mlp", "iw_samples": 3}),
        ("iwae", {"net": "mlp", "gradient": "dreg"}),
        ("hierarchical", {"net": "mlp"}),
        ("semi_amortized", {"net": "mlp", "refine_steps": 2}),
        ("latent_opt", {"net": "mlp"}),
        ("cnn", {}),
    ],
)
def test_as_one_each_is_what_it_is_alone_but_for_rounding(
    name: str, fields: dict[str, Any], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    members = [fields | member for member in MEMBERS]
    if name == "vae":
        members[1]["beta"] = 3.0
    histories = [alone(make(name, data, each), data) for each in members]
    sizes = counted(monkeypatch)
    events, ended = beside([make(name, data, each) for each in members], data, tmp_path / "one", as_one=True)
    assert ended == {0: None, 1: None, 2: None}
    # Two epochs of three batches of three models, and one of the model that has one more.
    stacks = make(name, data, fields).stacks
    assert sizes == ([3] * 6 + [1] * 3 if stacks else [1] * len(sizes))
    for history, heard in zip(histories, events, strict=True):
        for one, other in zip(figures(history), figures(heard), strict=True):
            # Adam's first steps are as long for the least gradient as for the largest, whatever its rounding.
            assert other == pytest.approx(one, rel=3e-3)


@pytest.mark.parametrize("as_one", [False, True])
def test_members_end_at_the_epochs_of_their_own_scores(as_one: bool, data: Data, tmp_path: Path):
    plateau = {
        "schedule": "plateau",
        "patience": 1,
        "patience_steps": 0,
        "min_improvement": 1e9,
        "beta_warmup": 0,
        "epochs": 9,
    }
    ends = {"epochs": 3}, plateau, {**plateau, "patience": 2}, {**plateau, "epochs": 2}
    members = [{"net": "mlp", "seed": seed, **fields} for seed, fields in enumerate(ends)]
    histories = [alone(make("vae", data, fields), data) for fields in members]
    assert [len(history) for history in histories] == [3, 4, 8, 2]
    events, ended = beside([make("vae", data, fields) for fields in members], data, tmp_path, as_one)
    assert set(ended.values()) == {None}
    for history, heard in zip(histories, events, strict=True):
        for one, other in zip(figures(history), figures(heard), strict=True):
            assert other == (pytest.approx(one, rel=3e-3) if as_one else one)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by how many steps are computed as one."""
    from elbolab.training import populations

    sizes: list[int] = []
    take = populations._take

    def counting(steps: list[Step], streams: Any) -> Any:
        sizes.append(len(steps))
        return take(steps, streams)

    monkeypatch.setattr(populations, "_take", counting)
    return sizes


@pytest.mark.parametrize("as_one", [False, True])
def test_one_that_fails_leaves_the_others_as_they_are(as_one: bool, data: Data, tmp_path: Path):
    healthy = [{"net": "mlp", **MEMBERS[0]}, {"net": "mlp", **MEMBERS[2]}]
    histories = [alone(make("vae", data, fields), data) for fields in healthy]
    diverging = {"net": "mlp", "lr": 1e30}
    models = [make("vae", data, fields) for fields in (healthy[0], diverging, healthy[1])]
    events, ended = beside(models, data, tmp_path / "beside", as_one)
    assert ended[0] is ended[2] is None
    assert isinstance(ended[1], UserError)
    assert "lower lr" in str(ended[1])
    for history, heard in zip(histories, (events[0], events[2]), strict=True):
        for one, other in zip(figures(history), figures(heard), strict=True):
            assert other == pytest.approx(one, rel=3e-3 if as_one else 0)


@pytest.mark.parametrize("as_one", [False, True])
def test_to_stop_ends_every_training_and_leaves_signals_as_they_were(as_one: bool, data: Data, tmp_path: Path):
    models = [make("vae", data, {"net": "mlp", **fields}) for fields in MEMBERS]
    before, ended = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def watched(place: int, backend: Backend) -> None:
        (tmp_path / str(place)).mkdir()
        try:
            train(models[place], data, lambda _: None, tmp_path / str(place), backend)
        finally:
            ended.append(place)

    turns = take_turns([partial(watched, place) for place in range(len(models))], as_one)
    place, outcome = next(turns)
    assert (place, outcome) == (0, None)
    assert ended == [0]
    turns.close()
    assert ended == [0, 1, 2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_models_of_other_forward_passes_are_not_computed_as_one(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields = [{"net": "mlp"}, {"net": "mlp", "latent_dim": 7}, {"net": "mlp", "activation": "tanh"}, {"net": "mlp"}]
    sizes = counted(monkeypatch)
    _, ended = beside([make("vae", data, each) for each in fields], data, tmp_path, as_one=True)
    assert set(ended.values()) == {None}
    assert sorted(sizes) == [1] * 12 + [2] * 6


LIST = f"""
from elbolab import Study
STUDY = Study(model="vae", base={{{TINY}}}, configs=[{{"lr": lr, "beta": 2.0}} for lr in (1e-3, 3e-3)], seeds=[0, 1],
  metrics=["val/log_px"], images=10, samples=20)
"""


def test_a_population_is_as_many_trials_with_the_same_results(store: Path):
    single, several = define(store, "single", LIST), define(store, "several", LIST)
    carry_out(single)
    parent = carry_out(several, population=3)
    assert [trial.params for trial in trials_of(several)] == [trial.params for trial in trials_of(single)]
    assert [trial.values for trial in trials_of(several)] == [trial.values for trial in trials_of(single)]
    runs = children(parent)
    assert sorted(runs) == [0, 1, 2, 3]
    for trial in trials_of(several):
        run = runs[trial.number]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["objective/log_px"] == trial.value
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/elbo")
        assert [metric.step for metric in history] == [1, 2]


def test_an_interrupted_population_is_queued_again(store: Path, monkeypatch: pytest.MonkeyPatch):
    several = define(store, "several", LIST)

    def interrupted(model: Model, data: Data, report: Any, folder: Path, backend: Backend) -> None:
        take, steps = backend.step, count()

        def signal_and_take(step: Step) -> None:
            if next(steps) == 1:
                signal.raise_signal(signal.SIGINT)
            take(step)

        if model.config.seed == 1:
            monkeypatch.setattr(backend, "step", signal_and_take)
        train(model, data, report, folder, backend)

    # Whoever starts the tests in the background may have Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patched:
        patched.setattr("elbolab.tuning.trial.train", interrupted)
        # None is to end in its first turn.
        patched.setattr("elbolab.training.populations.STEPS_AT_A_TURN", 1)
        with pytest.raises(KeyboardInterrupt):
            carry_out(several, population=4)
    signal.signal(signal.SIGINT, before)
    parent = carry_out(several, population=4)
    states = [run.info.status for run in children(parent).values()]
    assert sorted(states) == ["FAILED"] * 4 + ["FINISHED"] * 4
    finished = [run for run in children(parent).values() if run.info.status == "FINISHED"]
    assert len({(run.data.params["lr"], run.data.params["seed"]) for run in finished}) == 4
    assert mlflow_reader.get_run(parent).status == "FINISHED"
    assert all(math.isfinite(run.data.metrics["objective/log_px"]) for run in finished)


def test_a_population_of_several_architectures_is_refused(store: Path):
    name = define(store, "wide", LIST.replace('"beta": 2.0', '"latent_dim": 5').replace('"latent_dim": 4, ', ""))
    with pytest.raises(UserError, match="needs trials of one architecture, but this study changes latent_dim"):
        carry_out(name, population=2)
    with pytest.raises(UserError, match="population=0: should be greater than 0"):
        StudyConfig.parse({"population": 0})
