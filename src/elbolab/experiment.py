"""The jobs of the suite: train a model, evaluate a run, do the whole experiment."""

import json
import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch

from elbolab import distributed, records, tracker
from elbolab.compiling import is_worth_compiling
from elbolab.config import CompareConfig, Config, EvaluateConfig, Given, default_data_dir
from elbolab.data import Data, load_data
from elbolab.errors import UserError
from elbolab.evaluators import EVALUATORS, Findings, Subject
from elbolab.models import MODELS
from elbolab.models.cnn import CNN
from elbolab.models.model import Model
from elbolab.progress import Progress
from elbolab.registry import load_model
from elbolab.trainer import Event, train
from elbolab.unfinished import UNFINISHED, begun, find_unfinished, send_unfinished

PROTOCOL = "evaluation.protocol"


def choose_device(wanted: str) -> str:
    """The device to compute on; raises UserError where the wanted one is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda' is not to be had on this machine; use device=cpu or device=auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


@lru_cache(maxsize=1)
def _load(
    dataset: str,
    data_dir: Path,
    train_size: int | None,
    val_size: int | None,
    test_size: int | None,
    split_seed: int,
    binarise: str,
    device: str,
) -> Data:
    # The trainings of one process, a study's above all, mostly share their data.
    return load_data(dataset, data_dir, train_size, val_size, test_size, split_seed, binarise, device)


def load_for(config: Config, device: str = "cpu") -> Data:
    """The data that ``config`` names, on ``device``; raises UserError where they are not to be had."""
    sizes = config.train_size, config.val_size, config.test_size
    return _load(config.dataset, config.data_dir, *sizes, config.split_seed, config.binarise, device)


def prepare(name: str, config: Config) -> tuple[Model, Data, dict[str, str]]:
    """The model ``name`` before its training, its data, and the tags of the run that will train it.

    Raises UserError where it starts from the model of a run that is not there or does not fit.
    """
    device = choose_device(config.device)
    with distributed.one_first():
        data = load_for(config, device)
    torch.manual_seed(config.seed)
    model = MODELS[name](config, data.spec).to(device)
    for field, run_id in model.sources.items():
        model.start_from(field, load_model(run_id, device))
    return (
        model,
        data,
        {
            "data.name": data.name,
            "data.digest": data.spec.digest,
            "observation_model": model.observation_model,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "precision": str(model.precision).removeprefix("torch."),
            "compiled": str(is_worth_compiling(model, data)).lower(),
        },
    )


def train_model(name: str, config: Config, tags: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Train the model ``name`` and track it as a run, with ``tags`` beside its own, whose id is returned.

    With the ``folder`` of an unfinished run of this config it goes on with that run. Of several processes that
    torchrun started the first tracks, and the others return "". Raises UserError where one would be without images in
    every step, or where the data are not those that the unfinished run began with.
    """
    with distributed.group(choose_device(config.device)):
        if (least := distributed.processes()) > config.batch_size:
            raise UserError(f"batch_size={config.batch_size} must be at least {least}, the processes; start fewer")
        model, data, own_tags = prepare(name, config)
        if folder is not None and (digest := begun(folder)[1]["data.digest"]) != data.spec.digest:
            raise UserError(
                f"{data.name} has the digest {data.spec.digest} now and had {digest} when the run began; bring back "
                "the files of then"
            )
        if distributed.rank():
            distributed.together(lambda: train(model, data, lambda _: None, Path("none")))
            return ""
        return _tracked(name, model, data, own_tags | (tags or {}), folder)


def _tracked(name: str, model: Model, data: Data, tags: dict[str, str], folder: Path | None) -> str:
    config = model.config
    if distributed.processes() > 1:
        tags = {**tags, tracker.PROCESSES: str(distributed.processes())}
    tags = {**tags, "mlflow.note.content": _description(name, config)}
    with tracker.run("train", _run_name(name, config), {"model": name, **config.params()}, tags, None, folder) as track:
        track.log_value(config.model_dump(mode="json"), "config.json")
        track.log_data(data)
        with Progress(name, config.epochs) as progress:
            distributed.together(lambda: train(model, data, _both(track.report, progress), track.folder))
        track.set_tags({"observation_model": model.observation_model})
        track.log_curves()
        for file in ("last", "best"):
            track.log_artifact(track.folder / f"{file}.safetensors", "checkpoints")
        example = data.val.images[:2].permute(0, 2, 3, 1).cpu().numpy()
        track.log_model(track.folder / "best.safetensors", example)
    return track.id


def resume(run_id: str, model: str | None = None, fields: dict[str, Any] | None = None, new_run: bool = False) -> str:
    """Go on with the unfinished training of a run, in that run, from its newest state; returns its id.

    ``model`` and ``fields`` must be what they were, since the parameters of a run stay; with ``new_run`` a training
    of the run's parameters, changed by ``fields``, begins afresh as a run of its own. Raises UserError where the
    working folder has no such run, another process is at it, or it was trained by several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("to go on with a run is the work of one process; start it without torchrun")
    if (folder := find_unfinished(run_id)) is None:
        raise UserError(
            f"run {run_id!r} has nothing to go on with in {UNFINISHED.absolute()}: it is finished, or was "
            "begun in another folder; go there"
        )
    params, tags = begun(folder)
    name = params.pop("model")
    config = MODELS[name].Config.parse(params)
    wanted = MODELS[name].Config.parse({**params, **(fields or {})}) if model in (None, name) else None
    if new_run and wanted is not None:
        return train_model(name, wanted)
    if (processes := tags.get(tracker.PROCESSES)) is not None:
        raise UserError(
            f"run {run_id} was trained by {processes} processes, which keep nothing to go on from; begin afresh by "
            f"`elbolab {name} --resume {run_id} --new-run`"
        )
    if wanted != config:
        old, new = {"model": name, **config.params()}, {"model": model or name, **(wanted.params() if wanted else {})}
        changed = [f"{key}={value} was {old.get(key)}" for key, value in new.items() if value != old.get(key)]
        remedy = "leave it as it was" + (", or add --new-run to begin afresh" if wanted else "")
        raise UserError(f"{', '.join(changed)} in run {run_id}, whose parameters stay; {remedy}")
    tracker.nest_project_run(run_id, "resume call")
    return train_model(name, config, folder=folder)


def _run_name(name: str, config: Config) -> str:
    """The model with those of its own fields that are not as by default, and its seed: by it curves are told apart."""
    own = [*(key for key in type(config).model_fields if key not in Config.model_fields), "seed"]
    changes = config.changes()
    return " ".join([name, *(f"{key}={changes[key]}" for key in own if key in changes)])


def _description(name: str, config: Config) -> str:
    """What the model is, and the command that trains it so again, as Markdown."""
    summary = (MODELS[name].__doc__ or "").strip().splitlines()[0]
    options = [f"--{key.replace('_', '-')} {shlex.quote(value)}" for key, value in config.changes().items()]
    return f"{summary}\n\n    {' '.join(['elbolab', name, *options])}"


def _both(*reports: Callable[[Event], None]) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        for each in reports:
            each(event)

    return report


def _classifier(chosen: str | None, data: Data, device: str) -> tuple[str, CNN] | None:
    """The cnn of the run ``chosen``, else of the newest finished cnn run on the same data, else none."""
    if chosen is None:
        newest = records.find_runs(params={"model": "cnn"}, tags={"data.digest": data.spec.digest}, limit=1)
        if not newest:
            return None
        chosen = newest[0].id
    model = load_model(chosen, device)
    if not isinstance(model, CNN):
        raise UserError(f"classifier={chosen!r} is the run of another model than cnn; name a cnn's run")
    return chosen, model


def load_run(run_id: str, device: str) -> tuple[Model, Data]:
    """The trained model of a run and the data that it was trained on; raises UserError where these are others now.

    Where the folder of its data is not there, as on another machine, they are looked for in this machine's own.
    """
    model = load_model(run_id, device)
    config = model.config
    if not os.path.isdir(config.data_dir):
        config = config.model_copy(update={"data_dir": default_data_dir()})
    data = load_for(config, device)
    if data.spec.digest != model.spec.digest:
        raise UserError(
            f"run {run_id!r} was trained on data with digest {model.spec.digest}, but {data.name} now has the digest "
            f"{data.spec.digest}; bring back the files that it was trained on"
        )
    return model, data


def protocol(config: EvaluateConfig, more: Sequence[Callable[[Subject], Findings]] = ()) -> str:
    """What tells an evaluation from others: the fields that are not as by default, and the names of ``more``."""
    return json.dumps([config.changes(), [evaluator.__name__ for evaluator in more]])


def evaluate_run(
    run_id: str, config: EvaluateConfig, more: Sequence[Callable[[Subject], Findings]] = ()
) -> dict[str, float]:
    """Evaluate a finished training by every evaluator, and ``more``, and log what they find; returns the metrics.

    It takes the place of an earlier one: what only that one measured becomes NaN, since no metric can be deleted.
    """
    # What an earlier evaluation left unsent would else be sent over this one.
    send_unfinished(run_id)
    records.get_training(run_id)
    tracker.nest_project_run(run_id, "evaluate call")
    started = time.perf_counter()
    device = choose_device("auto")
    model, data = load_run(run_id, device)
    subject = Subject(model, data, config, _classifier(config.classifier, data, device))
    found = reduce(or_, (evaluator(subject) for evaluator in [*EVALUATORS.values(), *more]), Findings())
    # A tail of equal weights has a k of -inf, which a tracking server does not keep.
    metrics = {key: value for key, value in found.metrics.items() if math.isfinite(value)}
    outdated = records.evaluated_metrics(run_id) - metrics.keys()
    settings = {f"evaluation.{key}": str(getattr(config, key)) for key in ("samples", "images", "seed")}
    settings[PROTOCOL] = protocol(config, more)
    settings["evaluation.seconds"] = f"{time.perf_counter() - started:.1f}"
    with tracker.attached(run_id) as track:
        for name, value in found.files.items():
            track.log_value(value, f"evaluation/{name}")
        track.log_metrics(metrics | dict.fromkeys(outdated, math.nan))
        # Last, since these tags say that an evaluation is there.
        track.set_tags(settings | found.tags, last=True)
    return metrics


def run_all(given: Given) -> Path:
    """Train each model that the report has a place for, evaluate every run, compare them; returns the report."""
    # A single training need not wait for what draws reports.
    from elbolab.compare import ROLES, compare

    kinds = {name: MODELS[name].Config for name in ROLES}
    configs = {name: kind.parse(given.shared_with(kind)) for name, kind in kinds.items()}
    # Under every seed of the trainings the same evaluation, else they could not be averaged.
    evaluation = EvaluateConfig.parse({**given.shared_with(EvaluateConfig), "seed": EvaluateConfig().seed})
    for name, config in configs.items():
        # What is wrong with the last training is told before the first.
        prepare(name, config)
    with tracker.run("main", "main", given.params(), {}):
        for start in ("zeros", "normal"):
            train_model("latent_opt", configs["latent_opt"].model_copy(update={"latent_init": start}))
        runs = [train_model(name, config) for name, config in configs.items()]
        for run_id in runs:
            evaluate_run(run_id, evaluation)
        return compare(CompareConfig(run=tuple(runs), out=given.out))
