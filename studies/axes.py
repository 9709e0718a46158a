"""Where do the nats come from: the prior, the family of posteriors, or where a posterior's parameters come from?"""

from itertools import product
from typing import Any

import pandas as pd

from elbolab import Chart, EvaluateConfig, Line, Reproduction, Training

PRIORS: dict[str, dict[str, Any]] = {
    "normal": {},
    "mixture": {"prior_components": 50},
    "vamp": {"prior_components": 50},
    "flow": {},
}
POSTERIORS = ("diagonal", "full", "flow")
INFERENCE = ("vae", "semi_amortized", "latent_opt")
PLACES = [f"{prior}, {posterior}" for prior, posterior in product(PRIORS, POSTERIORS)]


def by_axes(table: pd.DataFrame) -> Chart:
    """Test log p(x), means over seeds, at each prior and family of posteriors."""
    own, lines = table[table.metric == "test/log_px"], []
    for model in INFERENCE:
        rows = own[own.training.str.startswith(f"{model}, ")]
        values = rows.groupby(rows.training.str.removeprefix(f"{model}, "), sort=False).value
        if len(means := values.mean()):
            at = [PLACES.index(name) + 1 for name in means.index]
            errors = values.sem()
            known = errors.notna().all()
            error = errors if known else ()
            line = {"x": at, "y": means, "error": error, "unreliable": bool(rows.unreliable.any())}
            lines.append(Line(name=model, **line))
    return Chart(x="prior, family of posteriors", y="test log p(x), nats", lines=lines, names=tuple(PLACES))


STUDY = Reproduction(
    question="Where do the nats come from: the prior, the family of posteriors, or the inference?",
    # Epochs are each training's own: until its validation score has stopped improving.
    base={
        "dataset": "mnist5k",
        "likelihood": "bernoulli",
        "net": "mlp",
        "hidden": 200,
        "latent_dim": 20,
        "precision": "float32",
    },
    trainings={
        f"{model}, {prior}, {posterior}": Training(
            model=model, fields={"prior": prior, "posterior": posterior, **PRIORS[prior]}
        )
        for model, prior, posterior in product(INFERENCE, PRIORS, POSTERIORS)
        # A vamp prior is made of an encoder's posteriors.
        if (model, prior) != ("latent_opt", "vamp")
    },
    seeds=(0, 1, 2),
    evaluation=EvaluateConfig(images=100),
    metrics=("test/log_px", "train/log_px", "simulated/bias", "train/seconds"),
    figure=by_axes,
)
