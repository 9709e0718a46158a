"""The job of a study from the command line: begin it or go on with it, bring MLflow up to date, or finalise it."""

import os

from elbolab import sqlite, tracker
from elbolab.config import StudyConfig
from elbolab.experiment import choose_device, load_for
from elbolab.finalise import finalise
from elbolab.mirror import PARENT, RUN_OF_STUDY, Mirror, parent_of
from elbolab.trials import Job, open_study
from elbolab.tuning import Study, load_study
from elbolab.workers import work_locally, work_on_ray


def run_study(name: str, config: StudyConfig) -> str:
    """Carry out the study ``name`` as ``config`` says; returns the id of the run that mirrors it.

    It ends with ``config.trials`` finished or pruned trials in all, so that the same call goes on with a study that
    was stopped, and does nothing to one that is complete.
    """
    name, definition = load_study(name)
    target = min(config.trials or definition.points or definition.trials, definition.points or 10**9)
    job = Job(name, definition, sqlite.absolute(config.storage), target, config.seed, config.heartbeat)
    # A mistake in the study's data is told before a trial is spent on it.
    first = definition.config_of({"config": 0, "seed": definition.seeds[0]} if definition.configs else {})
    load_for(first, choose_device(first.device))
    study, created = open_study(job)
    tracker.prepare_store()
    parent = parent_of(study, created)
    if parent is not None:
        _nest_project_run(parent)
    with tracker.run("study", name, _params(job), {"elbolab.study": name}, parent) as track:
        if parent is None:
            study.set_user_attr(RUN_OF_STUDY, track.id)
        mirror = Mirror(name, definition, track.id)
        try:
            if config.sync:
                print(f"{mirror.sync(study)} trials brought up to date")
            elif config.finalise is not None:
                finalise(job, study, track.id, config.finalise, config.seeds)
            elif config.executor == "ray":
                work_on_ray(job, track.id, config)
            else:
                work_locally(job, track.id, config.workers)
        finally:
            mirror.draw(study)
    return track.id


def _nest_project_run(parent: str) -> None:
    """`mlflow run` made a run for this call, but the study has one already: put it under that, and take up that one."""
    if (run_id := os.environ.pop("MLFLOW_RUN_ID", None)) is not None:
        tracker.Tracker(run_id).set_tags({PARENT: parent, tracker.KIND: "study call"})


def _params(job: Job) -> dict[str, str]:
    study: Study = job.study
    return {
        "study": job.name,
        "model": study.model,
        "metrics": ", ".join(study.metrics),
        "search": ", ".join(f"{name}: {wide}" for name, wide in study.space.items()),
        **{f"base.{name}": str(value) for name, value in study.base.items()},
    }
