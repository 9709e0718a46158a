"""Delete runs, or their models, checkpoints or pictures, but none that something else needs."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from elbolab.config.schema import PruneConfig
from elbolab.evaluation.metrics import find_metric
from elbolab.models import MODELS
from elbolab.support.errors import UserError, reason
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.keys import COMPARED, FINISHED, PARENT, REPRODUCTION, RUNNING, STUDY, TRAINING
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

    Runs in MLflow's trash and runs of others are left alone. Raises UserError where there is no such model, or a report
    cannot be read.
    """
    every = mlflow_reader.find_runs(kind=None, status=None, everywhere=True)
    known = {*MODELS, *(run.params.get("model", "") for run in every)} - {""}
    if config.model not in (None, *known):
        raise UserError(f"model={config.model!r} does not exist; there are: {', '.join(sorted(known))}")
    own = mlflow_reader.current_experiment()
    named = {run.id: run for run in every if run.experiment == own and _is_named(run, config)}
    why = {run_id: text for run_id, text in _needed(every, config).items() if run_id in named}
    if config.what in ("runs", "models"):
        why |= _leant_on(every, named.keys() - why.keys(), config.what)
    return Plan([run for run in named.values() if run.id not in why], why)


def delete(run: RunRecord, what: str) -> None:
    """Move a run into MLflow's trash, or remove its models, checkpoints or pictures for good.

    Raises UserError where the server refuses.
    """
    client = mlflow.MlflowClient()
    try:
        if what == "runs":
            client.delete_run(run.id)
        elif what == "models":
            for model in artifacts.models_of(run.id):
                client.delete_logged_model(model)
        else:
            uri = client.get_run(run.id).info.artifact_uri
            get_artifact_repository(str(uri)).delete_artifacts(FOLDERS[what])
    except (MlflowException, OSError, NotImplementedError) as error:
        raise UserError(f"the {what} of run {run.id} cannot be deleted on {address()}: {reason(error)}") from error


def _is_named(run: RunRecord, config: PruneConfig) -> bool:
    age = (time.time() * 1000 - run.start) / DAY
    return (
        (config.older_than is None or age >= config.older_than)
        and config.model in (None, run.params.get("model"))
        and config.status in (None, run.status)
        and _has(run, config.what)
    )


def _has(run: RunRecord, what: str) -> bool:
    """Whether there is anything of the kind to delete."""
    if what == "runs":
        return True
    if what == "models":
        return bool(artifacts.models_of(run.id))
    return bool(artifacts.list_artifacts(run.id, FOLDERS[what]))


def _needed(every: Sequence[RunRecord], config: PruneConfig) -> dict[str, str]:
    """Why a run stays, by id of those that do, whatever else does."""
    why = _best_of_studies(every)
    for folder in _reports(config):
        why |= dict.fromkeys(_in_report(folder), f"{folder} shows it")
    for run in every:
        if run.status != FINISHED and _can_be_resumed(run.id):
            why[run.id] = f"`elbolab resume {run.id[:8]}` resumes it"
        if TRAINING in run.tags:
            why[run.id] = f"the reproduction {run.tags.get(STUDY, '')} has trained it"
        if run.status == RUNNING:
            why[run.id] = "it is RUNNING; `elbolab sync` ends it where its process is gone"
    client = mlflow.MlflowClient()
    for version in mlflow_reader.all_pages(lambda token: client.search_model_versions(page_token=token)):
        why[str(version.run_id)] = f"it is version {version.version} of the registered model {version.name}"
    return why


def _leant_on(every: Sequence[RunRecord], going: set[str], what: str) -> dict[str, str]:
    """Which of the runs that would go others lean on that would stay, and those that these lean on, and so on."""
    found: dict[str, str] = {}
    left = [run for run in every if run.id not in going]
    by_id = {run.id: run for run in every}
    while left:
        run = left.pop()
        texts = [run.params.get("start", ""), run.params.get("latent_init", ""), run.tags.get("evaluation.cnn_run", "")]
        texts += [value for key, value in run.tags.items() if key.startswith(COMPARED)]
        texts += [run.tags.get(PARENT, "")] if what == "runs" else []
        for other in [one for text in texts for one in ID.findall(text)]:
            if other in going and other not in found:
                found[other] = f"run {run.id[:8]}, which stays, needs it"
                left.append(by_id[other])
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
        judged = [run for run in runs if metrics[0] in run.metrics and run.status == FINISHED]
        if len(metrics) == 1 and judged:
            # Which way a metric of a user's own is better is the study's to know; all of these stay.
            choose = {"maximize": max, "minimize": min}.get(getattr(find_metric(metrics[0]), "best", None) or "")
            judged = [choose(judged, key=lambda run: run.metrics[metrics[0]])] if choose else judged
        why |= {run.id: f"it is the best of study {by_id[parent].params.get('study', parent)}" for run in judged}
    return why


def _reports(config: PruneConfig) -> list[Path]:
    """The folder of reports that is there by default, those that are named, and what `compare` has kept in them."""
    for folder in config.report:
        if not Path(folder, "runs.csv").is_file():
            raise UserError(f"report={folder!r} is no folder of a report: it has no runs.csv; name one that has")
    return [path.parent for folder in ("report", *config.report) for path in sorted(Path(folder).rglob("runs.csv"))]


def _in_report(folder: Path) -> set[str]:
    try:
        return set(pd.read_csv(folder / "runs.csv")["run"])
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{folder / 'runs.csv'} does not say which runs the report shows ({reason(error)}); write it anew by "
            f"`elbolab compare --out {folder}`, or remove the folder"
        ) from error


def _can_be_resumed(run_id: str) -> bool:
    with suppress(UserError):
        return find_unfinished(run_id) is not None
    # What cannot be read may be its journal.
    return True
