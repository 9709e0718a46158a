"""Evaluate the run of a finished training: every evaluator, and what they find on the run."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_

from elbolab.config.schema import EvaluateConfig
from elbolab.evaluation import EVALUATORS, Evaluation, Results
from elbolab.evaluation.metrics import ACCURACY, BIAS, LOG_PX, LOG_PX_CONSTANT, SIMULATED
from elbolab.experiment.loading import choose_device, load_classifier, load_others, load_run
from elbolab.models.latent import LatentModel
from elbolab.registry.packaging import log_model
from elbolab.support.counters import computing_for
from elbolab.support.torch_settings import default_settings
from elbolab.support.user_code import Trust
from elbolab.tracking import mlflow_reader
from elbolab.tracking import run as tracking
from elbolab.tracking.keys import CONVERGED, EVALUATION_OOD, EVALUATION_PROTOCOL, EVALUATION_TIME, HALF_SENT
from elbolab.tracking.mlflow_reader import RunRecord, is_latent
from elbolab.tracking.mlflow_writer import now
from elbolab.tracking.offline import send_unfinished
from elbolab.tracking.run_names import find_id, find_training


def protocol(config: EvaluateConfig, more: Sequence[Callable[[Evaluation], Results]] = ()) -> str:
    """What tells an evaluation from others: the fields that are not as by default, and the names of ``more``.

    Other data that it has scored beside change none of its figures, and are no part of it: see ``is_of``.
    """
    # Which were other in 0.1.0.
    moved = {"method": config.method, "images": config.images}
    fields = {name: value for name, value in (config.changes() | moved).items() if name != "ood"}
    return json.dumps([fields, [evaluator.__name__ for evaluator in more]])


def is_of(run: RunRecord, config: EvaluateConfig, more: Sequence[Callable[[Evaluation], Results]] = ()) -> bool:
    """Whether the last evaluation of a run has found all that one by ``config`` and ``more`` would."""
    scored = run.tags.get(EVALUATION_OOD, "").split(",")
    return run.tags.get(EVALUATION_PROTOCOL) == protocol(config, more) and set(config.ood) <= set(scored)


@default_settings()
def evaluate_run(
    run_id: str,
    config: EvaluateConfig,
    more: Sequence[Callable[[Evaluation], Results]] = (),
    trust: Trust = False,
) -> dict[str, float]:
    """Evaluate a finished training by every evaluator, and ``more``, and log what they find; returns the metrics.

    Its model is loaded as ``load_model`` does, with ``trust``.
    It takes the place of an earlier one: what only that one measured becomes NaN, since no metric can be deleted.
    """
    run_id = find_id(run_id)
    # What its training has left unsent is wanted, and what an earlier evaluation has would be sent over this one.
    send_unfinished(log_model, run_id)
    run = find_training(run_id)
    tracking.nest_project_run(run_id, "evaluate call")
    started = time.perf_counter()
    device = choose_device("auto")
    model, data = load_run(run_id, device, trust)
    classifier = load_classifier(config.classifier, data, device)
    others = {}
    if isinstance(model, LatentModel):
        others = load_others(config.ood, model.config, data, device)
    elif config.ood:
        print(f"elbolab: {run.name} has no density of images, so that ood is left out", file=sys.stderr, flush=True)
    evaluation = Evaluation(model, data, config, classifier, others)
    # Of a model that is far from its posteriors every image takes the whole budget.
    hint = (
        "; it has not converged, so that estimates take long (with --budget 2048 less)" if _is_slow(run, config) else ""
    )
    print(f"elbolab: evaluating {run.name}{hint}", file=sys.stderr, flush=True)
    with computing_for(run.name):
        found = reduce(or_, (evaluator(evaluation) for evaluator in [*EVALUATORS.values(), *more]), Results())
    # A tail of equal weights has a k of -inf, which a tracking server does not keep.
    metrics = {key: value for key, value in found.metrics.items() if math.isfinite(value)}
    outdated = mlflow_reader.evaluated_metrics(run_id) - metrics.keys()
    settings = {
        f"evaluation.{key}": str(getattr(config, key)) for key in ("method", "tolerance", "samples", "images", "seed")
    }
    settings |= {EVALUATION_PROTOCOL: protocol(config, more), EVALUATION_OOD: ",".join(config.ood)}
    code = {"git.commit": "", "git.dirty": ""} | tracking.code_tags()
    settings |= {f"evaluation.{name}": value for name, value in code.items()}
    settings["evaluation.seconds"] = f"{time.perf_counter() - started:.1f}"
    with tracking.reopen_run(run_id) as track:
        track.set_tags({EVALUATION_PROTOCOL: HALF_SENT, EVALUATION_TIME: now()})
        for name, value in found.files.items():
            track.log_value(value, f"evaluation/{name}")
        track.log_metrics(metrics | dict.fromkeys(outdated, math.nan))
        # Last, since these tags say that an evaluation is there.
        track.set_tags(settings | found.tags, last=True)
    return metrics


def _is_slow(run: RunRecord, config: EvaluateConfig) -> bool:
    return run.tags.get(CONVERGED) == "false" and is_latent(run) and config.budget == EvaluateConfig().budget


def in_a_sentence(metrics: Mapping[str, float]) -> str:
    """What an evaluation found on test images."""
    if (accuracy := metrics.get(ACCURACY.at("test"))) is not None:
        return f"test accuracy {accuracy:.3f}"
    if (log_px := metrics.get(LOG_PX.at("test"))) is None:
        return "test log p(x) is not finite"
    error, bias = metrics.get(f"{LOG_PX.at('test')}_se", 0.0), metrics.get(BIAS.at(SIMULATED))
    sure = f" ± {error:.2f}" if error else ""
    low = "" if bias is None else f", too low by at most about {max(bias, 0):.2f}"
    constant = metrics[LOG_PX_CONSTANT.at("test")]
    return f"test log p(x) {log_px:.2f}{sure} nats{low}; a constant image has {constant:.2f}"
