"""The end of a study: its best configs trained anew on fresh seeds, one of them chosen, tested once and registered."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from elbolab.config.schema import EvaluateConfig
from elbolab.evaluation import Evaluation
from elbolab.evaluation.likelihood import mean_log_px
from elbolab.evaluation.metrics import ACCURACY, LOG_PX, LOSS, is_doubtful
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.loading import choose_device, load_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.registry.versions import register
from elbolab.support.errors import UserError
from elbolab.support.number_formats import BRIEFLY, dagger
from elbolab.support.statistics import mean_and_half_width
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import PARENT, STUDY, TRIAL, VALIDATION
from elbolab.tuning.optuna_storage import Job, method_of
from elbolab.tuning.study import with_distortion


def best_trials(job: Job, study: optuna.Study, count: int) -> list[FrozenTrial]:
    """A trial of each of the ``count`` best configs of a study, by their mean value over seeds, the best first.

    Raises UserError for a study with several metrics or with nothing finished.
    """
    if len(job.study.metrics) > 1:
        raise UserError(f"finalise needs a study of one metric, not of {', '.join(job.study.metrics)}")
    by_config: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        config = job.study.config_of(trial.params)
        by_config.setdefault(config.model_dump_json(exclude={"seed"}), []).append(trial)
    # A config of a list is judged by all of its seeds or not at all.
    whole = [trials for trials in by_config.values() if len(trials) >= len(job.study.seeds) or job.study.search]
    if not whole:
        raise UserError(f"study {job.name!r} has no finished trial; run it first")
    highest_first = job.study.directions[0] == "maximize"
    whole.sort(key=lambda trials: float(np.mean([trial.values for trial in trials])), reverse=highest_first)
    return [trials[0] for trials in whole[:count]]


def finalise(job: Job, study: optuna.Study, trials: Sequence[FrozenTrial], parent: str, seeds: int) -> None:
    """Train the configs of ``trials`` on ``seeds`` fresh seeds each, choose the one of the best mean validation metric,
    and only then read the test split, once for each of its runs; the best of these becomes a registered model.

    Goes on where it was stopped. The tables go to the run ``parent``.
    """
    metric, choose = job.study.metric, {"maximize": max, "minimize": min}[job.study.directions[0]]
    finalists: list[dict[str, Any]] = []
    means: dict[int, float] = {}
    for trial in trials:
        rows = _train(job, study, parent, trial, seeds)
        finalists += rows
        means[trial.number] = float(np.mean([row[metric] for row in rows]))
        print(f"trial {trial.number}: {_interval(metric, rows)}", file=sys.stderr)
    winner = choose(means, key=means.__getitem__)
    won = [row for row in finalists if row["trial"] == winner]
    # The test split is read here, after every choice but the one among seeds, which the validation split makes too.
    tested = [_test(row["run"]) for row in won]
    chosen = choose(won, key=lambda row: row[metric])
    summary = [_interval(metric, [{**test, **row} for test, row in zip(tested, won, strict=True)])]
    keys = (LOG_PX.at("test"), ACCURACY.at("test"))
    summary += [_interval(key, tested) for key in keys if all(key in test for test in tested)]
    uri = register(chosen["run"], job.name)
    with tracking.reopen_run(parent) as track:
        track.log_value(pd.DataFrame(finalists), "finalists.parquet")
        track.log_value({"trial": winner, "run": chosen["run"], "model": uri, "found": summary}, "final.json")
    print(f"trial {winner}, run {chosen['run']}, registered as {uri}", *summary, sep="\n")


def _interval(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mean, half = mean_and_half_width([row[name] for row in rows])
    doubtful = any(is_doubtful(row, name) for row in rows)
    text = dagger(f"{name} {mean:.4g} ± {half:.2g}", doubtful)
    return f"{text} (95% interval of the mean over {len(rows)} seeds{f'; {BRIEFLY}' if doubtful else ''})"


def _test(run_id: str) -> dict[str, float]:
    run = mlflow_reader.get_run(run_id)
    return run.metrics if "evaluation.samples" in run.tags else evaluate_run(run_id, EvaluateConfig())


def _train(job: Job, study: optuna.Study, parent: str, trial: FrozenTrial, seeds: int) -> list[dict[str, Any]]:
    """A row for each fresh seed of one config, with its run and validation metric, training those not there yet."""
    config = job.study.config_of(trial.params)
    done = {
        run.params["seed"]: run
        for run in mlflow_reader.find_runs("train", tags={PARENT: parent, TRIAL: str(trial.number)})
        if VALIDATION in run.tags
    }
    rows = []
    fresh_seed = max(config.seed, *job.study.seeds) + 1
    for seed in range(fresh_seed, fresh_seed + seeds):
        if (run := done.get(str(seed))) is not None:
            run_id, judged = run.id, json.loads(run.tags[VALIDATION])
        else:
            fresh = config.model_copy(update={"seed": seed})
            run_id = train_model(job.study.model, fresh, {STUDY: job.name, TRIAL: str(trial.number)})
            judged = _judge(job, study, run_id)
            with tracking.reopen_run(run_id) as track:
                track.set_tags({VALIDATION: json.dumps(judged)})
        rows.append({"trial": trial.number, "seed": seed, "run": run_id, **judged})
    return rows


def _judge(job: Job, study: optuna.Study, run_id: str) -> dict[str, float]:
    """What a trial would be judged by, and whether to trust it: of the run's model, which is that of its best epoch."""
    asked = job.study
    if asked.metric == LOG_PX.at("val"):
        model, data = load_run(run_id, choose_device("auto"))
        config = EvaluateConfig(method=method_of(study), samples=asked.samples, images=asked.images)
        return mean_log_px(Evaluation(model, data.without_test(), config), "val")
    epochs = mlflow_reader.history([run_id]).pivot(index="step", columns="key", values="value")
    kind = MODELS[asked.model]
    latent = issubclass(kind, LatentModel)
    best = epochs[f"val/{kind.score_metric}"].argmax() if latent else epochs[LOSS.at("val")].argmin()
    return {asked.metric: with_distortion(epochs.iloc[int(best)].to_dict())[asked.metric]}
