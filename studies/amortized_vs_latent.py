"""Where does latent optimisation lose to an encoder, and how many steps of fitting an image buy the encoder back?"""

import pandas as pd

from elbolab import Chart, EvaluateConfig, Line, Reproduction, Training
from elbolab.evaluation import Evaluation, Results
from elbolab.evaluation.base import mean_metrics
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.metrics import POSTERIOR_ELBO
from elbolab.models.fitting import fit_anew
from elbolab.models.latent import LatentModel

STEPS = (1, 3, 10, 30, 100, 300, 1000)
IMAGES = 200


def by_fit_steps(evaluation: Evaluation) -> Results:
    """The test ELBO under the model's own q, and under posteriors fitted to its decoder in so many steps."""
    model, config = evaluation.model, evaluation.config
    assert isinstance(model, LatentModel)
    rows = evaluation.data.test.stratified(IMAGES, config.seed)
    batch = model.observe(evaluation.data.test.batch(rows), evaluation.generator("test images"))
    own = model.infer(batch, evaluation.generator("own"))
    # As latent_opt starts and fits an image that has no row.
    posteriors = {"own": own} | {
        steps: fit_anew(model, batch.x, steps, generator=evaluation.generator("fit")) for steps in STEPS
    }
    metrics: dict[str, float] = {}
    for name, q in posteriors.items():
        log_w = log_weights(model, batch.x, q, config.samples, evaluation.generator("samples"))
        metrics |= mean_metrics(f"test/elbo_fit_{name}", log_w.mean(0).tolist())
    return Results(metrics)


def against_steps(table: pd.DataFrame) -> Chart:
    """Mean over seeds by steps, beside what the model's own inference gives."""
    means, lines = table.groupby(["training", "metric"], sort=False).value.mean(), []
    for training in table.training.unique():
        values = [means[training, f"test/elbo_fit_{steps}"] for steps in STEPS]
        own = None if training.startswith("latent_opt") else means[training, "test/elbo_fit_own"]
        lines.append(Line(name=training, x=STEPS, y=values, level=own))
    return Chart(
        x="steps of fitting each image's own posterior, decoder frozen",
        y="test ELBO, nats",
        lines=lines,
        dotted="what the model's own inference gives with the same decoder",
        # One step from nothing is far below everything else.
        bottom=min(line.y[STEPS.index(30)] for line in lines) - 15,
    )


STUDY = Reproduction(
    question="Where does latent optimisation lose to an encoder, and how many fitting steps buy the encoder back?",
    # One step of the decoder at every visit of a batch, and as many visits, whatever the inference.
    base={
        "epochs": 30,
        "schedule": "cosine",
        "clip": 0.0,
        "pca_epochs": 0,
        "latent_steps": 1,
        "beta_warmup": 0.0,
        "net": "mlp",
        "latent_dim": 50,
    },
    trainings={
        "vae": Training(model="vae"),
        "vae from pca": Training(model="vae", fields={"pca_epochs": 3}),
        "semi_amortized": Training(model="semi_amortized"),
        "latent_opt from zeros": Training(model="latent_opt", fields={"latent_init": "zeros"}),
        "latent_opt from normal": Training(model="latent_opt", fields={"latent_init": "normal"}),
        "latent_opt from pca": Training(model="latent_opt", fields={"latent_init": "pca"}),
        "latent_opt from encoder": Training(model="latent_opt", fields={"latent_init": "encoder:{vae}"}),
    },
    seeds=(0, 1, 2),
    evaluation=EvaluateConfig(images=500),
    metrics=("train/log_px", "test/log_px", "simulated/bias", POSTERIOR_ELBO.at("test"), "train/rate"),
    evaluators=(by_fit_steps,),
    figure=against_steps,
)
