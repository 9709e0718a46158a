"""Do the nets' products in bfloat16, where the CPU is fast at them, cost any likelihood?"""

from typing import Any

from elbolab import MODELS as KINDS
from elbolab import EvaluateConfig, Reproduction, Training
from elbolab.evaluation.metrics import POSTERIOR_ELBO

PRECISIONS = ("float32", "bfloat16")
MODELS = ("cnn", "vae", "latent_opt")

# A fixed number of epochs, so that both types get as many.
EPOCHS = {"epochs": 30, "schedule": "cosine", "clip": 0.0, "pca_epochs": 0}


def fields(model: str, precision: str) -> dict[str, Any]:
    """The fields of a training: of ``EPOCHS`` those that the model has; a classifier takes its own."""
    known = {} if model == "cnn" else {name: EPOCHS[name] for name in EPOCHS.keys() & KINDS[model].Config.model_fields}
    return {"precision": precision, **known}


STUDY = Reproduction(
    question="Are models whose nets multiply in bfloat16 while they train as good as those in float32?",
    trainings={
        f"{model} {precision}": Training(model=model, fields=fields(model, precision))
        for model in MODELS
        for precision in PRECISIONS
    },
    seeds=(0, 1, 2),
    evaluation=EvaluateConfig(images=200),
    metrics=("test/log_px", "train/log_px", POSTERIOR_ELBO.at("test"), "test/accuracy"),
)
