"""The whole experiment: train some models, evaluate every run, compare them."""

from pathlib import Path

from elbolab.config.schema import CompareConfig, EvaluateConfig, SuiteConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import prepare, train_model
from elbolab.models import MODELS
from elbolab.report.compare import compare
from elbolab.tracking.run import start_run

SUITE = ("cnn", "vae", "latent_opt", "ppca")
"""The models that it trains."""


def run_all(given: SuiteConfig) -> Path:
    """Train each model of ``SUITE``, evaluate every run, compare them; returns the report."""
    kinds = {name: MODELS[name].Config for name in SUITE}
    configs = {name: kind.parse(given.shared_with(kind)) for name, kind in kinds.items()}
    # Under every seed of the trainings the same evaluation, else they could not be averaged.
    evaluation = EvaluateConfig.parse({**given.shared_with(EvaluateConfig), "seed": EvaluateConfig().seed})
    for name, config in configs.items():
        # What is wrong with the last training is told before the first.
        prepare(name, config)
    with start_run("main", "main", given.params(), {}):
        for start in ("zeros", "normal"):
            train_model("latent_opt", configs["latent_opt"].model_copy(update={"latent_init": start}))
        runs = [train_model(name, config) for name, config in configs.items()]
        for run_id in runs:
            evaluate_run(run_id, evaluation)
        return compare(CompareConfig(run=tuple(runs), out=given.out))
