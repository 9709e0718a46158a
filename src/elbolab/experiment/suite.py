"""The whole experiment: train some models, evaluate every run, compare them."""

from functools import partial
from pathlib import Path

from elbolab.config.schema import CompareConfig, EvaluateConfig, SuiteConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.loading import load_classifier, load_for, load_others
from elbolab.experiment.train import prepare, train_model
from elbolab.models import MODELS
from elbolab.report.compare import compare
from elbolab.support.processes import call_beside_each_other
from elbolab.support.random_streams import own_stream
from elbolab.tracking.run import nest_new_runs, start_run

SUITE = ("latent_opt", "vae", "cnn", "ppca")
"""The models that it trains, those that take long first."""
STARTS, STARTS_EPOCHS, STARTS_IMAGES = ("zeros", "normal"), 20, 20
"""The starts of latent_opt beside its default, and the epochs and images after which it is plain how they do."""


@own_stream()
def run_all(given: SuiteConfig) -> Path:
    """Train each model of ``SUITE``, evaluate every run, compare them; returns the report.

    Images without labels need no classifier. Trainings run beside each other, and then evaluations.
    """
    kinds = {name: MODELS[name].Config for name in SUITE}
    configs = {name: kind.parse(given.shared_with(kind)) for name, kind in kinds.items()}
    if load_for(configs["cnn"], "cpu").spec.classes < 2:
        del configs["cnn"]
    # Under every seed of the trainings the same evaluation, else they could not be averaged.
    evaluation = EvaluateConfig.parse({**given.shared_with(EvaluateConfig), "seed": EvaluateConfig().seed})
    for name, config in configs.items():
        # What is wrong with the last training, the classifier of all or other data is told before the first.
        _, data, _ = prepare(name, config)
        load_others(evaluation.ood, config, data)
        if evaluation.classifier is not None:
            load_classifier(evaluation.classifier, data, "cpu")
    # Estimates for models that are far from converged take most gradients.
    images = STARTS_IMAGES if evaluation.images == "all" else min(evaluation.images, STARTS_IMAGES)
    fewer = evaluation.model_copy(update={"images": images, "gap_images": min(evaluation.gap_images, images)})
    base = configs["latent_opt"]
    epochs = base.epochs if given.model_dump().get("epochs") else min(base.epochs, STARTS_EPOCHS)
    others = [base.model_copy(update={"latent_init": start, "epochs": epochs}) for start in STARTS]
    trainings = [*configs.items(), *(("latent_opt", config) for config in others)]
    with start_run("main", "main", given.params(), {}) as track:
        nest = partial(nest_new_runs, track.id)
        runs = call_beside_each_other([partial(train_model, *training) for training in trainings], nest)
        evaluations = [evaluation] * len(configs) + [fewer] * len(STARTS)
        call_beside_each_other([partial(evaluate_run, *one) for one in zip(runs, evaluations, strict=True)], nest)
        return compare(CompareConfig(run=tuple(runs[: len(configs)]), out=given.out))
