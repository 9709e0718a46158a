"""The commands that a report's notices name."""

import json
from typing import Any

from elbolab.config.click_options import command_line
from elbolab.config.schema import DATA_FIELDS, Config, EvaluateConfig
from elbolab.tracking.keys import CODE, EVALUATION_OOD, EVALUATION_PROTOCOL
from elbolab.tracking.mlflow_reader import RunRecord


def evaluate_again(run: RunRecord) -> str:
    """Return the command that evaluates a run as it was evaluated."""
    return command_line("evaluate", run.id, **_given(run))


def train_again(run: RunRecord, epochs: int) -> str:
    """Return the command that trains as a run did until the score stops improving, for at most ``epochs``."""
    words = ["train", run.tags[CODE]] if CODE in run.tags else [run.params["model"]]
    return command_line(*words, resume=run.id, new_run=True, schedule="plateau", epochs=epochs)


def evaluate_surer(run: RunRecord) -> str:
    """Return the command that makes a run's estimates surer: as it was evaluated, with twice the budget."""
    given = _given(run)
    if given.get("method") != "auto":
        return command_line("evaluate", run.id, **_trust(run), method="auto")
    return command_line("evaluate", run.id, **given | {"budget": 2 * int(given.get("budget", EvaluateConfig().budget))})


def train_classifier(run: RunRecord) -> str:
    """Return the command that trains a cnn on the data of a run."""
    usual = Config().params()
    data = {name: run.params.get(name, usual.get(name)) for name in DATA_FIELDS}
    return command_line("cnn", **{name: value for name, value in data.items() if value != usual.get(name)})


def _given(run: RunRecord) -> dict[str, Any]:
    given = json.loads(run.tags.get(EVALUATION_PROTOCOL, "[{}]"))[0]
    # Of an evaluation whose place another has begun to take nothing is known.
    ood = {"ood": names} if given and (names := run.tags.get(EVALUATION_OOD)) else {}
    return {**_trust(run), **given, **ood}


def _trust(run: RunRecord) -> dict[str, Any]:
    return {"trust": True} if "code" in run.params else {}
