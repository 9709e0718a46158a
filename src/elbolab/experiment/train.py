"""Train a model and track it as a run, or resume a run whose training was interrupted."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from elbolab.config.click_options import command_line
from elbolab.config.schema import Config
from elbolab.config.version_0_1_0 import with_added
from elbolab.data.splits import Data
from elbolab.experiment.loading import choose_device, data_tags, load_for
from elbolab.models import MODELS, params_of
from elbolab.models.base import Model
from elbolab.models.soundness import construct, refuse_unsound
from elbolab.registry.packaging import load_model, log_model
from elbolab.support.errors import UserError
from elbolab.support.random_streams import own_stream
from elbolab.support.torch_settings import default_settings
from elbolab.support.user_code import Source, kept, load
from elbolab.tracking import run as tracking
from elbolab.tracking.code import keep_code, read_code
from elbolab.tracking.journal import read_state
from elbolab.tracking.keys import ADOPTED, CODE, CONVERGED, SOURCES
from elbolab.tracking.meant_runs import LATEST, brief
from elbolab.tracking.offline import UNFINISHED, begun, find_unfinished
from elbolab.tracking.run_names import find_id, find_training
from elbolab.training import distributed
from elbolab.training.backend import Backend
from elbolab.training.checkpoint import epoch_of, load_checkpoint
from elbolab.training.compiled_steps import CompiledSteps
from elbolab.training.pictures import take_pictures
from elbolab.training.progress import Progress
from elbolab.training.trainer import Event, train


def prepare(
    which: str | type[Model], config: Config, backend: Backend | None = None
) -> tuple[Model, Data, dict[str, str]]:
    """The model ``which`` before its training, its data, and the tags of the run that will train it on ``backend``.

    By default that is this process, with compiled steps. Raises UserError where it starts from the model of a run that
    is not there or does not fit, and where the user's own code gives what no model may.
    """
    kind = MODELS.find(which)
    if not isinstance(config, kind.Config):
        wanted = f"{kind.__name__}.Config"
        raise UserError(f"config is a {type(config).__name__}, but {kind.__name__} takes its own; give {wanted}(...)")
    device = choose_device(config.device)
    config = config.with_runs(find_id)
    backend = backend or CompiledSteps()
    with backend.one_first():
        data = load_for(config, device)
    torch.manual_seed(config.seed)
    model = construct(kind, config, data.spec, device)
    if model.code:
        refuse_unsound(model, data)
    for field, run_id in model.sources.items():
        model.start_from(field, load_model(run_id, device))
    tags = {
        **data_tags(data),
        "observation_model": model.observation_model,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precision": str(model.precision).removeprefix("torch."),
        "compiled": str(backend.compiles(model, data)).lower(),
    }
    if "model" in model.code and MODELS.name_of(kind) not in MODELS:
        tags[CODE] = str(model.code["model"])
    if model.sources:
        fields = config.params()
        tags[SOURCES] = json.dumps({field: fields[field] for field in model.sources})
    return model, data, tags | model.axes


@own_stream()
@default_settings()
def train_model(
    which: str | type[Model],
    config: Config | None = None,
    tags: dict[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Train a model and track it as a run, with ``tags`` beside its own, whose id is returned.

    ``which`` is a name in MODELS, path/to/file.py:Name, or a class of your own that derives from one of elbolab's; its
    code becomes part of the run. ``config`` is one of its Config, by default that of all defaults.

    With the ``folder`` of an unfinished run of this config it resumes that run. Of several processes that
    torchrun started the first tracks, and the others return "". Raises UserError where one would be without images in
    every step, or where the data are not those that the unfinished run began with.
    """
    kind = MODELS.find(which)
    config = kind.Config() if config is None else config
    with distributed.group(choose_device(config.device)) as processes:
        backend = processes or CompiledSteps()
        if (least := backend.processes) > config.batch_size:
            raise UserError(f"batch_size={config.batch_size} must be at least {least}, the processes; start fewer")
        model, data, own_tags = prepare(kind, config, backend)
        if folder is not None and (digest := begun(folder)[1]["data.digest"]) != data.spec.digest:
            raise UserError(
                f"{data.name} has the digest {data.spec.digest} now and had {digest} when the run began; bring back "
                "the files of then"
            )
        if backend.rank:
            backend.run(lambda: train(model, data, lambda _: None, Path("none"), backend))
            return ""
        return _tracked(model, data, own_tags | (tags or {}), folder, backend)


def _tracked(model: Model, data: Data, tags: dict[str, str], folder: Path | None, backend: Backend) -> str:
    config, run_name = model.config, _run_name(model)
    if backend.processes > 1:
        tags = {**tags, tracking.PROCESSES: str(backend.processes)}
    tags = {**tags, "mlflow.note.content": _description(model)}
    with tracking.start_run(
        "train", run_name, params_of(type(model), config), tags, folder=folder, package=log_model
    ) as track:
        if folder is None:
            track.log_code(model.code)
            keep_code(track.folder, model.code)
        track.log_value(config.model_dump(mode="json"), "config.json")
        track.log_data(data)
        with Progress(run_name, config.epochs) as progress:

            def report(event: Event) -> None:
                track.report(event)
                progress(event)
                if event.converged is not None:
                    track.set_tags({CONVERGED: str(event.converged).lower()})

            backend.run(lambda: train(model, data, report, track.folder, backend))
        track.set_tags({"observation_model": model.observation_model})
        track.log_curves()
        epochs: dict[str, int] = {}
        for file in ("last", "best"):
            path = track.folder / f"{file}.safetensors"
            track.log_artifact(path, "checkpoints")
            # Which epochs these are is known only now.
            epochs[file] = epoch = epoch_of(path)
            track.set_tags({f"{file}_epoch": str(epoch)})
            track.log_pictures(take_pictures(load_checkpoint(path, model.device), data, Backend()), epoch)
        example = data.val.images[:2].permute(0, 2, 3, 1).cpu().numpy()
        track.log_model(track.folder / "best.safetensors", example)
    progress.say_outcome(**epochs)
    return track.id


def resume(asked: str, model: str | None = None, fields: dict[str, Any] | None = None, new_run: bool = False) -> str:
    """Go on with the unfinished training that is meant, in its own run, from its newest state; returns the run's id.

    ``model`` and ``fields`` must be what they were, since the parameters of a run stay; with ``new_run`` a training
    of the run's parameters, changed by ``fields``, begins afresh as a run of its own, be that one finished or not.
    Raises UserError where the working folder has no such run, another process is at it, or it was trained by several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("a run is resumed by one process; start it without torchrun")
    folder = find_unfinished(asked)
    if folder is None and not new_run:
        if LATEST.fullmatch(asked):
            raise UserError(f"there is no unfinished training of {asked!r} in {UNFINISHED.absolute()}")
        # By a name that somebody gave it on the server.
        if (folder := find_unfinished(run_id := find_id(asked))) is None:
            raise UserError(
                f"run {run_id} has nothing to resume in {UNFINISHED.absolute()}: it is finished, or was begun in "
                "another folder; go there"
            )
    if folder is not None:
        (params, tags), run_id = begun(folder), read_state(folder).get("run_id", folder.name)
    else:
        run = find_training(asked, any_status=True)
        params, tags, run_id = run.params, run.tags, run.id
    if ADOPTED in tags:
        raise UserError(f"run {run_id} is adopted, and is not trained here; name a run that elbolab has trained")
    params = with_added(params)
    name, code = params["model"], {} if folder is None else read_code(folder)
    # Of a run that is resumed the code with which it began, whatever files say now.
    began = {params.get(field, field): source for field, source in code.items()}
    asked_kind = None if model is None else MODELS.find(model)
    with kept(began):
        kind = _kind_of(name, code, asked_kind)
        params = {key: value for key, value in params.items() if key in kind.Config.model_fields}
        config = kind.Config.parse(params)
        old = params_of(kind, config)
    if new_run and asked_kind is None:
        asked_kind = kind
    if asked_kind is not None:
        is_same = MODELS.name_of(asked_kind) == name
        wanted = asked_kind.Config.parse({**params, **(fields or {})}).with_runs(find_id) if is_same else None
        if new_run and wanted is not None:
            return train_model(asked_kind, wanted)
        new = {"model": MODELS.name_of(asked_kind)} if wanted is None else params_of(asked_kind, wanted)
        if changed := [f"{key}={value} was {old.get(key)}" for key, value in new.items() if value != old.get(key)]:
            remedy = "leave it as it was" + (", or add --new-run to begin afresh" if is_same else "")
            if code and any(change.startswith("code=") for change in changed):
                remedy = f"`elbolab resume {run_id}` goes on with the code with which it began, --new-run begins afresh"
            raise UserError(f"{', '.join(changed)} in run {run_id}, whose parameters stay; {remedy}")
    if (processes := tags.get(tracking.PROCESSES)) is not None:
        raise UserError(
            f"run {run_id} was trained by {processes} processes, which keep nothing to go on from; begin afresh by "
            f"`elbolab {name} --resume {run_id} --new-run`"
        )
    tracking.nest_project_run(run_id, "resume call")
    with kept(began):
        return train_model(kind, config, folder=folder)


def _kind_of(name: str, code: dict[str, Source], asked: type[Model] | None) -> type[Model]:
    """The class of a run's model."""
    if "model" in code and name not in MODELS:
        return MODELS.checked(load(code["model"]), name)
    if asked is not None and MODELS.name_of(asked) == name:
        return asked
    if name not in MODELS:
        raise UserError(f"{name} is a model of the user's own; `elbolab train path/to/file.py:{name}` names its file")
    return MODELS[name]


# Where a training's data are, and what it runs on, tells no run from another.
PLACES = ("data_dir", "device", "compile")
# A database cuts a name there.
LONGEST = 250


def _run_name(model: Model) -> str:
    """The model with its fields that are not as by default, its own ones first: by it runs are told apart."""
    config = model.config
    own = [key for key in type(config).model_fields if key not in Config.model_fields]
    shared = [key for key in Config.model_fields if key not in (*PLACES, "seed")]
    changes = config.changes()
    named = [f"{key}={brief(changes[key])}" for key in (*own, *shared, "seed") if key in changes]
    return " ".join([MODELS.name_of(type(model)), *named])[:LONGEST]


def _description(model: Model) -> str:
    """What the model is, and the command that trains it so again, as Markdown."""
    name, changes = MODELS.name_of(type(model)), model.config.changes()
    own = model.code.get("model")
    command = command_line(name, **changes) if own is None else command_line("train", str(own), **changes)
    return f"{MODELS.summary_of(type(model))}\n\n    {command}"
