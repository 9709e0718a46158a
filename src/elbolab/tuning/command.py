"""The job of a study from the command line: read its file, begin it or go on with it, update MLflow, or finalise it."""

import importlib.util
import sys
from pathlib import Path

import optuna
from mlflow.exceptions import MlflowException
from optuna.exceptions import OptunaError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from elbolab.config.click_options import command_line
from elbolab.config.limits import expanded
from elbolab.config.schema import EvaluateConfig, StudyConfig
from elbolab.experiment.loading import choose_device, load_for
from elbolab.models import MODELS
from elbolab.registry.packaging import log_model
from elbolab.support import sqlite
from elbolab.support.errors import UserError, reason
from elbolab.support.torch_settings import default_settings
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import STUDY
from elbolab.tracking.offline import send_unfinished
from elbolab.training.populations import BESIDE_THE_FORWARD
from elbolab.tuning.finalise import best_trials, finalise
from elbolab.tuning.mlflow_mirror import Mirror, parent_of, set_parent
from elbolab.tuning.optuna_storage import Job, open_study
from elbolab.tuning.reproduction import Reproduction, Training, reproduce
from elbolab.tuning.study import Study
from elbolab.tuning.trial import brief_params
from elbolab.tuning.workers import work_locally, work_on_ray


def load_study(name: str) -> tuple[str, Study | Reproduction]:
    """The name and the definition of a study: of studies/NAME.py under the working folder, or of the file NAME.

    Raises UserError where there is no such file, or its code fails, or it defines no valid study.
    """
    path = expanded(Path(name)) if name.endswith(".py") else Path("studies", f"{name}.py")
    if not path.is_file():
        have = ", ".join(sorted(found.stem for found in Path("studies").glob("*.py"))) or "none"
        raise UserError(f"study={name!r} is no file {path}; studies here: {have}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValidationError as error:
        kinds = {kind.__name__: kind for kind in (Reproduction, Training, EvaluateConfig)}
        raise UserError(f"{path}: {kinds.get(error.title, Study).explain(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # A script ends by SystemExit.
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study | Reproduction):
        raise UserError(f"{path} has no STUDY = Study(...) or Reproduction(...); define one")
    return path.stem, study


@default_settings()
def run_study(name: str, config: StudyConfig) -> str:
    """Carry out the study ``name`` as ``config`` says, a search or a reproduction; returns the id of its run.

    A search ends with ``config.trials`` finished or pruned trials in all, so that the same call goes on with a study
    that was stopped, and does nothing to one that is complete. Raises UserError where the study or ``config`` is not
    valid, a database or server does not answer, or every trial fails.
    """
    name, definition = load_study(name)
    limits = {"passes", "only"}
    own = limits if isinstance(definition, Reproduction) else set(StudyConfig.model_fields) - limits
    if wrong := sorted(config.model_fields_set - own):
        raise UserError(f"study {name} takes no {', '.join(wrong)}; it takes {', '.join(sorted(own))}")
    if isinstance(definition, Reproduction):
        return reproduce(name, definition, config.passes, config.only)
    _refuse_idle(config)
    points = len(definition.points)
    target = min(config.trials or points or definition.trials, points or sys.maxsize)
    if config.population > 1:
        _refuse_unequal(definition, config)
    storage = sqlite.absolute(config.storage)
    # A mistake in the study's data is raised before the first trial; --sync trains none.
    any_config = definition.any_config
    digest = None if config.sync else load_for(any_config, choose_device(any_config.device)).spec.digest
    job = Job(name, definition, storage, target, config.seed, config.heartbeat, config.population, digest)
    try:
        return _carry_out(job, config)
    except MlflowException as error:
        raise UserError(
            f"{mlflow_reader.address()} does not answer ({reason(error)}); the trials are safe in {config.storage}, "
            "and the same command goes on with them"
        ) from error
    except (OptunaError, SQLAlchemyError) as error:
        raise UserError(
            f"storage={config.storage!r} was lost ({reason(error)}); the same command goes on with it"
        ) from error


def _refuse_idle(config: StudyConfig) -> None:
    """Raise UserError where a field is given that has no effect beside the others."""
    for names, needed, is_there in (
        ({"workers"}, "executor=local", config.executor == "local"),
        ({"address", "cpus_per_trial", "gpus_per_trial"}, "executor=ray", config.executor == "ray"),
        ({"seeds"}, "finalise", config.finalise is not None),
    ):
        if not is_there and (idle := sorted(names & config.model_fields_set)):
            raise UserError(f"{', '.join(idle)}: no effect without {needed}; add that, or leave it out")


def _refuse_unequal(study: Study, config: StudyConfig) -> None:
    """Raise UserError where the study's trials cannot be trained as one population."""
    changing = {*study.search, *(name for values in study.configs for name in values)}
    if unequal := sorted(changing - BESIDE_THE_FORWARD):
        raise UserError(
            f"population={config.population} needs trials of one architecture, but this study changes "
            f"{', '.join(unequal)}; fix that in base, or leave population out"
        )
    if config.executor == "ray":
        raise UserError(
            f"population={config.population} is of one process, and Ray takes a trial a task; leave one out"
        )


def _carry_out(job: Job, config: StudyConfig) -> str:
    # --sync and --finalise begin no study, and a mistake in them must not change the status of the study's run.
    only_ends = config.sync or config.finalise is not None
    study, created = open_study(job, begin=not only_ends)
    finalists = best_trials(job, study, config.finalise) if config.finalise is not None else []
    mlflow_reader.prepare_store()
    parent = parent_of(study, created, anew=config.sync)
    if parent is not None:
        tracking.nest_project_run(parent, "study call")
    if config.sync and parent is not None:
        return _sync(job, study, parent)
    if parent is None and not config.sync:
        for point in job.study.points:
            study.enqueue_trial(point, skip_if_exists=True)
    with tracking.start_run("study", job.name, _params(job), {STUDY: job.name}, parent) as track:
        if track.writer.run_id is None:
            raise UserError(
                f"{mlflow_reader.address()} does not answer, and a search begins with a run there; try again"
            )
        if parent is None:
            set_parent(study, track.id)
        mirror = Mirror(job.name, job.study, track.id)
        try:
            if config.sync:
                print(f"{mirror.sync(study)} trials mirrored anew on {mlflow_reader.address()}")
            elif finalists:
                finalise(job, study, finalists, track.id, config.seeds)
            elif config.executor == "ray":
                work_on_ray(job, track.id, config)
            else:
                work_locally(job, track.id, config.workers)
        finally:
            mirror.sync(study)
            mirror.draw(study)
        # Before what the end of the run says, which may be that something is still to be sent.
        if not finalists and not config.sync and len(job.study.metrics) == 1:
            _say_best(job, study)
    return track.id


def _say_best(job: Job, study: optuna.Study) -> None:
    try:
        best, *others = best_trials(job, study, 3)
    except UserError:
        # Every trial was pruned.
        return
    print(f"elbolab: the best config is that of trial {best.number} ({brief_params(best)})", file=sys.stderr)
    again = command_line("study", job.name, finalise=1 + len(others))
    print(f"elbolab: `{again}` trains the best on fresh seeds and tests the one that wins", file=sys.stderr)


def _sync(job: Job, study: optuna.Study, parent: str) -> str:
    """Make MLflow equal to Optuna; the end of the study's run is sent where it was not."""
    send_unfinished(log_model, parent)
    mirror = Mirror(job.name, job.study, parent)
    print(f"{mirror.sync(study)} trials brought up to date")
    mirror.draw(study)
    return parent


def _params(job: Job) -> dict[str, str]:
    study = job.study
    return {
        "study": job.name,
        "model": MODELS.name_of(MODELS[study.model]),
        "metrics": ", ".join(study.metrics),
        "images": str(study.images),
        "samples": str(study.samples),
        "pruner": study.stops_by,
        "search": ", ".join(f"{name}: {wide}" for name, wide in study.space.items()),
        **{f"base.{name}": str(value) for name, value in study.base.items()},
    }
