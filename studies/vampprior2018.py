"""What do the VampPrior's pseudo-inputs gain over N(0, I), and are the numbers those of Tomczak & Welling 2018?"""

import math
import os
from pathlib import Path
from typing import Any

from elbolab import EvaluateConfig, Reproduction, Training
from elbolab.evaluation import Evaluation, Results
from elbolab.evaluation.base import mean_metrics
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.metrics import BITS_PER_DIM_5000, LOG_PX_5000, TEST
from elbolab.models.latent import LatentModel

# 1,565, 200 and 200 images, and 50,000, 10,000 and 10,000.
FREY: dict[str, Any] = {
    "dataset": f"npz:{Path(os.environ.get('ELBOLAB_DATA', '.'), 'frey_faces.npz')}",
    "val_size": 200,
    "test_size": 200,
    "likelihood": "discretised_logistic",
}
MNIST: dict[str, Any] = {"dataset": "mnist", "val_size": 10_000, "likelihood": "bernoulli"}
PRIORS: dict[str, dict[str, Any]] = {"normal": {}, "vamp": {"prior": "vamp", "prior_components": 500}}
# Table 1, one stochastic layer.
REPORTED = {
    "Frey Faces, normal": {"test/bits_per_dim_5000": 4.63},
    "Frey Faces, vamp": {"test/bits_per_dim_5000": 4.57},
    "dynamic MNIST, normal": {"test/log_px_5000": -84.50},
    "dynamic MNIST, vamp": {"test/log_px_5000": -82.38},
}


def by_5000_samples(evaluation: Evaluation) -> Results:
    """L_5000 of the evaluated test images from the encoder's posterior, as the paper has it, and its bits."""
    model, generator = evaluation.model, evaluation.generator("5000 samples")
    assert isinstance(model, LatentModel)
    parts = [
        importance_estimate(model, batch.x, q, 5000, generator).log_px for batch, q in evaluation.with_inferred(TEST)
    ]
    log_px = [value for part in parts for value in part.tolist()]
    metrics = mean_metrics(LOG_PX_5000.at(TEST), log_px)
    if model.likelihood.of_bytes:
        unit = -math.prod(model.spec.shape) * math.log(2)
        metrics |= mean_metrics(BITS_PER_DIM_5000.at(TEST), [value / unit for value in log_px])
    return Results(metrics)


STUDY = Reproduction(
    question="What do the VampPrior's pseudo-inputs gain over N(0, I), and are the numbers the paper's?",
    # The best epoch on validation images is kept, which is theirs: they stop after 50 without a better one. They
    # normalise each gradient before Adam, and draw the first pseudo-inputs around one grey.
    base={
        "net": "mlp",
        "activation": "glu",
        "hidden": 300,
        "latent_dim": 40,
        "batch_size": 100,
        "lr": 5e-4,
        "schedule": "constant",
        "clip": 0.0,
        "pca_epochs": 0,
        "beta_warmup": 100.0,
        "precision": "float32",
    },
    trainings={
        f"{name}, {prior}": Training(model="vae", fields={**data, **fields, "epochs": epochs})
        for name, data, epochs in (("Frey Faces", FREY, 1000), ("dynamic MNIST", MNIST, 500))
        for prior, fields in PRIORS.items()
    },
    evaluation=EvaluateConfig(images=200),
    metrics=("test/bits_per_dim_5000", "test/bits_per_dim", "test/log_px_5000", "test/log_px", "simulated/bias"),
    references=REPORTED,
    source="Tomczak & Welling 2018, table 1, one stochastic layer (5,000 importance samples)",
    evaluators=(by_5000_samples,),
)
