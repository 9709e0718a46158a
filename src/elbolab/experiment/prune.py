"""Delete runs, or the checkpoints or pictures of runs, but none that something else needs."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from elbolab.config.schema import PruneConfig
from elbolab.evaluation.metrics import find_metric
from elbolab.support.errors import UserError, reason
from elbolab.tracking import mlflow_reader
from elbolab.tracking.keys import PARENT, REPRODUCTION, RUNNING, STUDY, TRAINING
from elbolab.tracking.meant_runs import ID
from elbolab.tracking.mlflow_reader import RunRecord, address
from elbolab.tracking.offline import find_unfinished

DAY = 86_400_000
# The folders of a run's artifacts.
FOLDERS = {"checkpoints": "checkpoints", "pictures": "images"}


@dataclass(frozen=True)
class Plan:
    """The runs that a rule names: those to delete, or to delete something of, and by id why others stay."""

    runs: list[RunRecord]
    kept: dict[str, str]


def plan(config: PruneConfig) -> Plan:
    """What ``config`` names among elbolab's runs in the current experiment, the newest first.

    Runs in MLflow's trash and runs of others are left alone. Raises UserError where a report cannot be read.
    """
    every = mlflow_reader.find_runs(kind=None, status=None)
    named = [run for run in every if _is_named(run, config)]
    why = _needed(every, config)
    return Plan([run for run in named if run.id not in why], {run.id: why[run.id] for run in named if run.id in why})


def delete(run: RunRecord, what: str) -> None:
    """Move a run and its logged models into MLflow's trash, or remove its checkpoints or pictures for good.

    Raises UserError where the server refuses.
    """
    client = mlflow.MlflowClient()
    try:
        found = client.get_run(run.id)
        if what == "runs":
            for output in found.outputs.model_outputs if found.outputs else []:
                client.delete_logged_model(output.model_id)
            client.delete_run(run.id)
        else:
            get_artifact_repository(str(found.info.artifact_uri)).delete_artifacts(FOLDERS[what])
    except (MlflowException, OSError, NotImplementedError) as error:
        raise UserError(f"the {what} of run {run.id} cannot be deleted on {address()}: {reason(error)}") from error


def _is_named(run: RunRecord, config: PruneConfig) -> bool:
    age = (time.time() * 1000 - run.start) / DAY
    return (
        (config.older_than is None or age > config.older_than)
        and config.model in (None, run.params.get("model"))
        and config.status in (None, run.status)
        and (config.what == "runs" or "model" in run.params)
    )


def _needed(every: Sequence[RunRecord], config: PruneConfig) -> dict[str, str]:
    """Why a run stays, by id of those that do."""
    why = {run.id: "it is RUNNING" for run in every if run.status == RUNNING}
    client = mlflow.MlflowClient()
    for version in mlflow_reader.all_pages(lambda token: client.search_model_versions(page_token=token)):
        why.setdefault(str(version.run_id), f"it is version {version.version} of the registered model {version.name}")
    why |= {run: f"it is in the report {folder}" for folder in config.report for run in _in_report(folder, config)}
    for run in every:
        if run.status != "FINISHED" and _can_be_resumed(run.id):
            why.setdefault(run.id, f"`elbolab resume {run.id[:8]}` resumes it")
        if TRAINING in run.tags:
            why.setdefault(run.id, f"the reproduction {run.tags.get(STUDY, '')} has trained it")
    why = _best_of_studies(every) | why
    if config.what == "runs":
        by_id = {run.id: run for run in every}
        for needed in list(why):
            why |= {one: reason for one, reason in _leant_on(by_id, needed).items() if one not in why}
    return why


def _leant_on(by_id: Mapping[str, RunRecord], needed: str) -> dict[str, str]:
    """The runs that one which stays is nested in, starts from or was judged by, and theirs."""
    found: dict[str, str] = {}
    left = [needed]
    while left:
        if (run := by_id.get(left.pop())) is None:
            continue
        texts = [run.params.get("start", ""), run.params.get("latent_init", ""), run.tags.get("evaluation.cnn_run", "")]
        for other in [run.tags.get(PARENT, ""), *(one for text in texts for one in ID.findall(text))]:
            if other in by_id and other not in found:
                found[other] = f"run {run.id[:8]}, which stays, needs it"
                left.append(other)
    return found


def _best_of_studies(every: Iterable[RunRecord]) -> dict[str, str]:
    """The best trial of each study, all of one with several metrics; a reproduction's own run."""
    why: dict[str, str] = {}
    by_id = {run.id: run for run in every}
    trials: dict[str, list[RunRecord]] = {}
    for run in by_id.values():
        if (parent := by_id.get(run.tags.get(PARENT, ""))) is not None and "metrics" in parent.params:
            trials.setdefault(parent.id, []).append(run)
        if REPRODUCTION in run.tags:
            why[run.id] = "it is that of a reproduction"
    for parent, runs in trials.items():
        metrics = by_id[parent].params["metrics"].split(", ")
        judged = [run for run in runs if metrics[0] in run.metrics]
        if len(metrics) == 1 and judged:
            # Which way a metric of a user's own is better is the study's to know; all of these stay.
            choose = {"maximize": max, "minimize": min}.get(getattr(find_metric(metrics[0]), "best", None) or "")
            judged = [choose(judged, key=lambda run: run.metrics[metrics[0]])] if choose else judged
        why |= {run.id: f"it is the best of study {by_id[parent].params.get('study', parent)}" for run in judged}
    return why


def _in_report(folder: str, config: PruneConfig) -> set[str]:
    try:
        return set(pd.read_csv(f"{folder}/runs.csv")["run"])
    except FileNotFoundError:
        if "report" not in config.model_fields_set:
            return set()
        raise UserError(f"report={folder!r} has no runs.csv; name the folder of a report") from None
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{folder}/runs.csv cannot be read: {reason(error)}; write the report anew") from error


def _can_be_resumed(run_id: str) -> bool:
    with suppress(UserError):
        return find_unfinished(run_id) is not None
    # What cannot be read may be its journal.
    return True
