"""How far do VAE and IWAE get in each stage of the schedule of Burda et al. 2016, and do they end where theirs did?

And how far by a shorter training: the same data, nets, bounds and estimates, by larger steps.
"""

from math import hypot
from typing import Any

import pandas as pd
import torch

from elbolab import Chart, EvaluateConfig, Line, Reproduction, Training
from elbolab.evaluation import Evaluation, Results
from elbolab.evaluation.base import IMAGES_AT_ONCE
from elbolab.evaluation.importance_sampling import importance_estimate
from elbolab.evaluation.weights import heavy_tailed
from elbolab.models.latent import LatentModel
from elbolab.support.statistics import mean_se

# By K, of one stochastic layer: test negative log-likelihood (table 1) and active units (table 2).
REPORTED = {"vae": (86.76, 19), "iwae5": (85.54, 22), "iwae50": (84.78, 25)}
MODELS = {
    "vae": ("vae", {"beta_warmup": 0.0}),
    "iwae5": ("iwae", {"iw_samples": 5}),
    "iwae50": ("iwae", {"iw_samples": 50}),
}
STAGES = range(8)
# A rate may rise with the batch, whose steps cost less an image; from the nets that a PCA starts, and with one fall.
FAST = {"batch_size": 250, "lr": 3e-3, "schedule": "cooldown", "epochs": 2000, "pca_epochs": 3, "precision": "auto"}


def stage_fields(name: str, stage: int) -> dict[str, Any]:
    """A stage of the schedule, each a training of its own that goes on from the nets of the one before."""
    start = {"start": f"{{{name} i={stage - 1}}}"} if stage else {}
    return {"epochs": 3**stage, "lr": 1e-3 * 10 ** (-stage / 7), **start}


def nll_5000(evaluation: Evaluation) -> Results:
    """-L_5000 of the test images, nats (Burda et al. 2016, section 5).

    The mean of -L_100 over all, and of L_100 - L_5000 over as many as are evaluated, in whole batches: for the others
    L_100 stands, and what it lacks is taken from these.
    """
    assert isinstance(evaluation.model, LatentModel)
    model, test, generator = evaluation.model, evaluation.data.test, evaluation.generator("nll_5000")
    most = len(test) if evaluation.config.images == "all" else evaluation.config.images
    everyone, changes, unreliable = [], [], []
    # Stratified, so that the first images are as the others.
    for rows in test.stratified(len(test), evaluation.config.seed).split(IMAGES_AT_ONCE):
        batch = model.observe(test.batch(rows), generator)
        q = model.infer(batch, generator)
        bound = importance_estimate(model, batch.x, q, 100, generator).log_px
        everyone += bound.tolist()
        if len(changes) < most:
            estimate = importance_estimate(model, batch.x, q, 5000, generator)
            changes += (bound - estimate.log_px).tolist()
            unreliable += heavy_tailed(estimate).tolist()
    (change, change_se), (mean, mean_error) = mean_se(changes), mean_se(everyone)
    # Of the subset and of all, as if these were other images.
    found = {"test/nll_5000": change - mean, "test/nll_5000_se": hypot(change_se, mean_error)}
    return Results({**found, "test/nll_5000_unreliable": sum(unreliable) / len(unreliable)})


def distance(table: pd.DataFrame) -> Chart | None:
    """Test negative log-likelihood less the paper's, at the end of each stage; None without stages."""
    own = table[table.metric == "test/nll_5000"]
    lines: list[Line] = []
    for name, (reported, _) in REPORTED.items():
        if len(rows := own[own.training.str.startswith(f"{name} ")]):
            passes = rows.epochs.cumsum()
            line = {"x": passes, "y": rows.value - reported, "error": rows.std_err, "level": 0}
            lines.append(Line(name=name, unreliable=bool(rows.unreliable.any()), **line))
    if not lines:
        return None
    return Chart(
        x="passes over the training images up to the end of each stage",
        y="test -L_5000 less the paper's, nats",
        lines=lines,
        dotted="the paper's",
    )


STUDY = Reproduction(
    question="Do the VAE and the IWAE end where those of Burda et al. 2016 did?",
    base={
        "dataset": "mnist",
        # They held none out; these choose the epoch that is kept.
        "val_size": 1000,
        "likelihood": "bernoulli",
        "net": "mlp",
        "hidden": 200,
        "activation": "tanh",
        "latent_dim": 50,
        "batch_size": 20,
        "adam_eps": 1e-4,
        "schedule": "constant",
        "clip": 0.0,
        "pca_epochs": 0,
        "precision": "float32",
    },
    trainings={
        f"{name} i={stage}": Training(model=model, fields={**fields, **stage_fields(name, stage)})
        for name, (model, fields) in MODELS.items()
        for stage in STAGES
    }
    | {f"fast {name}": Training(model=model, fields={**fields, **FAST}) for name, (model, fields) in MODELS.items()},
    # So many images take a CPU hours.
    evaluation=EvaluateConfig(images=10_000 if torch.cuda.is_available() else 1000),
    # Beside the paper's number what it hides: log p(x) of annealing, with its certificate.
    metrics=("test/nll_5000", "test/log_px", "simulated/bias", "test/unreliable", "test/active_units"),
    references={
        label: dict(zip(("test/nll_5000", "test/active_units"), values, strict=True))
        for name, values in REPORTED.items()
        for label in (*(f"{name} i={stage}" for stage in STAGES), f"fast {name}")
    },
    source="Burda et al. 2016, tables 1 and 2, one stochastic layer, after stage i=7 (3,280 passes in all)",
    evaluators=(nll_5000,),
    figure=distance,
)
