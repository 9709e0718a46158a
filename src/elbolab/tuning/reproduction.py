"""A reproduction: a list of trainings, evaluated under one protocol, beside the numbers that their source reports."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Self

import pandas as pd
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from pydantic import Field, model_validator

from elbolab.config.base import Settings, Value
from elbolab.config.click_options import command_line
from elbolab.config.schema import Config, EvaluateConfig
from elbolab.config.version_0_1_0 import with_added
from elbolab.evaluation import Evaluation, Results
from elbolab.evaluation.metrics import is_doubtful
from elbolab.experiment.evaluate import evaluate_run, is_of
from elbolab.experiment.loading import choose_device, load_for, load_others
from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS, params_of
from elbolab.report.chart import Chart
from elbolab.report.plots import chart_png
from elbolab.report.sections.reproductions import FOUND, insert, markdown, summarise
from elbolab.support import figures
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import LAST_EPOCH, REPRODUCTION, STUDY, TRAINING
from elbolab.tracking.mlflow_reader import RunRecord
from elbolab.tracking.offline import free_trainings

RESULTS = Path("docs", "results.md")
# Fields that say where something is computed, not what.
PLACES = {"device", "data_dir"}


class Training(Settings):
    """One of a reproduction's trainings: a model and the values of its fields."""

    model: str
    """Name in MODELS, or path/to/file.py:Name of one of your own."""
    fields: dict[str, Value] = Field(default_factory=dict)
    """Values beside those of the reproduction's base; {NAME} in a text is the run of the training NAME on this seed."""


class Reproduction(Settings):
    """A question that listed trainings answer, each under every seed and evaluated alike, beside published numbers."""

    question: str
    """What is asked, one sentence."""
    trainings: dict[str, Training] = Field(min_length=1)
    """What is trained, by name, in this order."""
    base: dict[str, Value] = Field(default_factory=dict)
    """Values of fields, the same in every training whose model has the field."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds under which each is trained."""
    evaluation: EvaluateConfig = EvaluateConfig()
    """How each is evaluated; {NAME} in its classifier is the run of the training NAME on the same seed."""
    metrics: tuple[str, ...] = Field(min_length=1)
    """The figures of the table, as keys of an evaluated run's metrics."""
    references: dict[str, dict[str, float]] = Field(default_factory=dict)
    """What the source reports of a training, by metric."""
    source: str = ""
    """Where that stands."""
    evaluators: tuple[Callable[[Evaluation], Results], ...] = ()
    """Evaluators of this question alone, beside those of every run."""
    figure: Callable[[pd.DataFrame], Chart | None] | None = None
    """What is drawn of the runs, if anything; a row a training, seed and metric: training, seed, run, epochs, metric,
    value, std_err, unreliable."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        earlier: dict[str, str] = {}
        fields: set[str] = set()
        for label, training in self.trainings.items():
            try:
                MODELS.find(training.model)
            except UserError as error:
                raise UserError(f"training {label!r}: {error}") from None
            self.config(label, self.seeds[0], earlier)
            earlier[label] = "run"
            fields |= MODELS[training.model].Config.model_fields.keys()
            if "seed" in training.fields.keys() | self.base.keys():
                raise ValueError("seed is not a field of base or of a training; give seeds")
        if unknown := self.base.keys() - fields:
            raise ValueError(f"base has {', '.join(sorted(unknown))}, which no training has")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} has one twice; give each once")
        if unknown := self.references.keys() - self.trainings.keys():
            raise ValueError(f"references name {', '.join(sorted(unknown))}, which trainings do not")
        return self

    def config(self, label: str, seed: int, runs: dict[str, str], passes: int | None = None) -> Config:
        """The config of a training, given the ``runs`` of those before it; ``passes`` is the most that it may take."""
        training = self.trainings[label]
        kind = MODELS[training.model].Config
        shared = {name: value for name, value in self.base.items() if name in kind.model_fields}
        own = {name: _filled(label, value, runs) for name, value in training.fields.items()}
        config = kind.parse({**shared, **own, "seed": seed})
        return config if passes is None else config.model_copy(update={"epochs": min(config.epochs, passes)})


def _filled(label: str, value: Any, runs: dict[str, str]) -> Any:
    try:
        return value.format_map(runs) if isinstance(value, str) else value
    except KeyError as missing:
        raise UserError(f"training {label!r} needs the run of {missing}, which is not done before it") from None


def reproduce(name: str, study: Reproduction, passes: int | None = None, only: Sequence[str] = ()) -> str:
    """Train and evaluate what is missing, write table and figure to the study's run, and return its id.

    ``passes`` is the most that a training may take, ``only`` are shell patterns of the trainings that are done. What
    an earlier call finished is found by its config and used. Where ``docs/results.md`` has a place for the study, the
    table goes there too. Raises UserError where ``only`` names no training, one needs the run of another that is not
    done before it, or a run has none of the study's metrics.
    """
    labels = [label for label in study.trainings if not only or any(fnmatchcase(label, pattern) for pattern in only)]
    if not labels:
        raise UserError(f"only={','.join(only)} names no training; there are: {', '.join(study.trainings)}")
    planned: dict[str, str] = {}
    for label in labels:
        config = study.config(label, study.seeds[0], planned, passes)
        planned[label] = "run"
        if study.evaluation.ood:
            # What is wrong with other data is told before the first training.
            load_others(study.evaluation.ood, config, load_for(config))
        _filled(label, study.evaluation.classifier, planned)
    tags = {STUDY: name, REPRODUCTION: "true", MLFLOW_RUN_NOTE: study.question}
    with tracking.start_run("study", name, {"study": name, "seeds": str(study.seeds)}, tags) as track:
        runs: list[tuple[str, int, RunRecord]] = []
        for seed in study.seeds:
            done: dict[str, str] = {}
            for label in labels:
                trained = _trained(name, study, label, study.config(label, seed, done, passes))
                # Cut down to fewer passes, a longer training may be one that is there already.
                known = trained in done.values()
                done[label] = trained
                if not known:
                    runs.append((label, seed, _evaluated(study, label, done)))
        table = _table(study, runs)
        found = summarise(table, study.metrics, study.references) | {
            "name": name,
            "question": study.question,
            "source": study.source,
            "command": command_line("study", name, passes=passes, only=tuple(only)),
            "evaluation": study.evaluation.changes(),
            "commits": sorted({_commit(run) for _, _, run in runs}),
            "devices": sorted({run.tags.get("device", "unknown") for _, _, run in runs}),
            "seconds": sum(run.seconds + float(run.tags["evaluation.seconds"]) for _, _, run in runs),
        }
        chart = None if study.figure is None else figures.draw("the study's figure", partial(study.figure, table))
        track.log_value(found | {"chart": chart and chart.model_dump(mode="json")}, FOUND)
        _publish(found, chart, table, track)
        return track.id


def _publish(found: dict[str, Any], chart: Chart | None, table: pd.DataFrame, track: tracking.RunWriter) -> None:
    """The runs as a CSV, the figure, and both in the documentation where it has a place for them."""
    name = f"{found['name']}.png"
    png = figures.draw(name, partial(chart_png, chart)) if chart is not None else None
    with tempfile.TemporaryDirectory() as folder:
        rows, picture = Path(folder, "runs.csv"), Path(folder, name)
        table.to_csv(rows, index=False)
        track.log_artifact(rows)
        if png is not None:
            picture.write_bytes(png)
            track.log_artifact(picture, "figures")
    shown = None if png is None else chart
    if RESULTS.is_file() and insert(RESULTS, found["name"], markdown(found, shown)) and png is not None:
        RESULTS.with_name(name).write_bytes(png)


def _commit(run: RunRecord) -> str:
    changed = " with changes" if run.tags.get("git.dirty") == "true" else ""
    return f"{run.tags.get('git.commit', 'unknown')[:7]}{changed}"


def _trained(name: str, study: Reproduction, label: str, config: Config) -> str:
    """The finished run of a training: an earlier one of the same config and data, finished now where it was not."""
    model = study.trainings[label].model
    wanted = params_of(MODELS[model], config)
    spec = load_for(config, choose_device(config.device)).spec
    tags = {STUDY: name, "data.digest": spec.digest}
    for run in mlflow_reader.find_runs("train", {"model": wanted["model"]}, tags):
        if _only_moved(wanted, run.params):
            return run.id
    for run_id, params in free_trainings(tags):
        if _only_moved(wanted, with_added(params, spec.shape[1:])) and _is_there(run_id):
            print(f"elbolab: resuming {label}, run {run_id[:8]}", file=sys.stderr, flush=True)
            return resume(run_id)
    return train_model(model, config, {STUDY: name, TRAINING: label})


def _is_there(run_id: str) -> bool:
    try:
        return mlflow_reader.get_run(run_id).id == run_id
    except UserError:
        # Deleted, or on another server.
        return False


def _only_moved(wanted: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """Whether two trainings differ at most in where their data are and what they run on."""
    return {field for field, _ in wanted.items() ^ params.items()} <= PLACES


def _evaluated(study: Reproduction, label: str, done: dict[str, str]) -> RunRecord:
    """The run of a training, evaluated as the study says: anew where its last evaluation was another."""
    run = mlflow_reader.get_run(done[label])
    classifier = _filled(label, study.evaluation.classifier, done)
    config = study.evaluation.model_copy(update={"classifier": classifier})
    if not is_of(run, config, study.evaluators):
        evaluate_run(run.id, config, study.evaluators)
        run = mlflow_reader.get_run(run.id)
    if not any(metric in run.metrics for metric in study.metrics):
        raise UserError(f"run {run.id} has none of the metrics {', '.join(study.metrics)}; name what evaluate logs")
    return run


def _table(study: Reproduction, runs: list[tuple[str, int, RunRecord]]) -> pd.DataFrame:
    rows = [
        {
            "training": label,
            "seed": seed,
            "run": run.id,
            "epochs": int(run.tags.get(LAST_EPOCH, run.params["epochs"])),
            "metric": metric,
            "value": value,
            "std_err": run.metrics.get(f"{metric}_se"),
            "unreliable": is_doubtful(run.metrics, metric),
        }
        for label, seed, run in runs
        for metric, value in run.metrics.items()
        if metric in study.metrics or metric.startswith("test/")
    ]
    return pd.DataFrame(rows)
