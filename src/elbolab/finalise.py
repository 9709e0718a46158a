"""The end of a study: its best configs trained anew on fresh seeds, one of them chosen, tested once and registered."""

import math
import sys

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student_t

from elbolab import tracker
from elbolab.config import EvaluateConfig
from elbolab.errors import UserError
from elbolab.evaluators import Subject
from elbolab.evaluators.importance import mean_log_px
from elbolab.experiment import choose_device, evaluate_run, load_for, train_model
from elbolab.mirror import PARENT, STUDY, TRIAL
from elbolab.registry import load_model, register
from elbolab.trials import Job

VALUE = "elbolab.validation"


def mean_and_half_width(values: list[float]) -> tuple[float, float]:
    """Mean of ``values`` (n > 1) and half the width of its 95% interval, Student's t with n - 1 degrees of freedom."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(student_t.ppf(0.975, len(values) - 1)) * error


def finalise(job: Job, study: optuna.Study, parent: str, best: int, seeds: int) -> None:
    """Train the ``best`` configs on ``seeds`` fresh seeds each, choose the one of the best mean validation metric, and
    only then read the test split, once for each of its runs; the best of these becomes a registered model.

    Goes on where it was stopped. Raises UserError for a study with several metrics or with nothing finished.
    """
    if len(job.study.metrics) > 1:
        raise UserError(f"finalise needs a study of one metric, not of {', '.join(job.study.metrics)}")
    maximise = job.study.directions[0] == "maximize"
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    candidates = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=maximise)[:best]
    if not candidates:
        raise UserError(f"study {job.name!r} has no finished trial; run it first")
    means: dict[int, float] = {}
    runs: dict[int, dict[str, float]] = {}
    for trial in candidates:
        runs[trial.number] = _train(job, parent, trial, seeds)
        means[trial.number], half = mean_and_half_width(list(runs[trial.number].values()))
        print(f"trial {trial.number}: {job.study.metrics[0]} {means[trial.number]:.4g} ± {half:.2g}", file=sys.stderr)
    choose = max if maximise else min
    winner = choose(means, key=means.__getitem__)
    # The test split is read here, after every choice but the one among seeds, which the validation split makes too.
    found = [evaluate_run(run_id, EvaluateConfig()) for run_id in runs[winner]]
    chosen = choose(runs[winner], key=runs[winner].__getitem__)
    for key in ("test/log_px", "test/accuracy"):
        if values := [metrics[key] for metrics in found if key in metrics]:
            mean, half = mean_and_half_width(values)
            print(f"trial {winner}: {key} {mean:.4g} ± {half:.2g} over {seeds} seeds")
    print(f"registered {register(chosen, job.name)}")


def _train(job: Job, parent: str, trial: FrozenTrial, seeds: int) -> dict[str, float]:
    """The validation metric by run id of one config on fresh seeds, training those that are not there yet."""
    config = job.study.config_of(trial.params)
    found = {}
    done = {
        run.params["seed"]: run
        for run in tracker.find_runs("train")
        if (run.tags.get(PARENT), run.tags.get(TRIAL)) == (parent, str(trial.number)) and VALUE in run.tags
    }
    for seed in range(config.seed + 1, config.seed + 1 + seeds):
        if (run := done.get(str(seed))) is not None:
            found[run.id] = float(run.tags[VALUE])
            continue
        fresh = config.model_copy(update={"seed": seed})
        run_id = train_model(job.study.model, fresh, {STUDY: job.name, TRIAL: str(trial.number)})
        value = _judge(job, run_id)
        tracker.Tracker(run_id).set_tags({VALUE: repr(value)})
        found[run_id] = value
    return found


def _judge(job: Job, run_id: str) -> float:
    study = job.study
    if study.metrics[0] != "val/log_px":
        return tracker.get_run(run_id).metrics[study.metrics[0]]
    device = choose_device("auto")
    model = load_model(run_id, device)
    data = load_for(model.config, device).without_test()
    return mean_log_px(Subject(model, data, EvaluateConfig(samples=study.samples, images=study.images)), "val")
