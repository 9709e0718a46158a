"""How much of the bias of importance-weighted bounds does the jackknife take out of a trained VAE's (Nowozin 2018)?"""

import torch

from elbolab import EvaluateConfig, Reproduction, Training
from elbolab.evaluation import Evaluation, Results
from elbolab.evaluation.base import IMAGES_AT_ONCE, mean_metrics
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.weights import jackknife
from elbolab.models.latent import LatentModel

SAMPLES = 32


def jackknifed(evaluation: Evaluation) -> Results:
    """L_K of all test images and what the jackknife makes of it, from the same K = 32 samples of q each, in nats."""
    model, generator = evaluation.model, evaluation.generator("jackknife")
    assert isinstance(model, LatentModel)
    found: dict[str, list[float]] = {}
    for batch in evaluation.data.test.batches(IMAGES_AT_ONCE):
        batch = model.observe(batch, generator)
        log_w = log_weights(model, batch.x, model.infer(batch, generator), SAMPLES, generator)
        values = {"iw_bound": log_w.logsumexp(0) - torch.tensor(SAMPLES).log()}
        values |= {f"jvi_{order}": jackknife(log_w, order) for order in (1, 2)}
        for name, value in values.items():
            found.setdefault(f"test/{name}_{SAMPLES}", []).extend(value.tolist())
    metrics: dict[str, float] = {}
    for key, value in found.items():
        metrics |= mean_metrics(key, value)
    return Results(metrics)


STUDY = Reproduction(
    question="How much of the bias of importance-weighted bounds does the jackknife take out of a trained VAE's?",
    base={
        "dataset": "mnist",
        "val_size": 1000,
        "likelihood": "bernoulli",
        "net": "mlp",
        "hidden": 300,
        "latent_dim": 40,
        "batch_size": 100,
        "beta_warmup": 0.0,
        # Of the paper's passes a CPU does some tens in minutes.
        "schedule": "cosine",
        "epochs": 60,
        "clip": 0.0,
        "pca_epochs": 0,
    },
    trainings={"vae": Training(model="vae")},
    evaluation=EvaluateConfig(images=500),
    metrics=("test/posterior_elbo", "test/iw_bound_32", "test/jvi_1_32", "test/jvi_2_32", "test/log_px"),
    references={
        "vae": {
            "test/posterior_elbo": -93.38,
            "test/iw_bound_32": -89.22,
            "test/jvi_1_32": -88.66,
            "test/jvi_2_32": -88.40,
        }
    },
    source="Nowozin 2018, table 1, first row",
    evaluators=(jackknifed,),
)
