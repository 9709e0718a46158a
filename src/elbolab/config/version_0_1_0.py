"""What 0.1.0 trained by and its runs and studies do not say: fields added since, defaults that have changed."""

from collections.abc import Sequence
from typing import Any

from elbolab.config.schema import Config

# By a field of the models that have them now, of several the first.
ADDED: dict[str, dict[str, Any]] = {
    "latent_dim": {"prior": "normal", "posterior": "diagonal", "min_improvement": 0.1},
    "net": {"prior_components": 10, "width": 32},
    "schedule": {"patience": 10, "patience_steps": 0, "min_improvement": 0.002, "clip": 0.0},
}
ENCODERS = ("vae", "iwae", "semi_amortized")
# Conv nets halved all images so often, before there was a choice; today they do up to this side.
DEPTH, HALVED_TWICE = 2, 32


def with_depth(fields: dict[str, Any]) -> dict[str, Any]:
    """All fields of a config with the depth of its nets, where they are of before that could be chosen."""
    # An automatic depth is no parameter of a run, but width came with it and always is.
    return {"depth": DEPTH} | fields if "net" in fields and "width" not in fields else fields


def with_added(params: dict[str, str], sides: Sequence[int] = ()) -> dict[str, str]:
    """A run's parameters with those that its version did not have, as it trained.

    Of images whose ``sides`` are known to be at most 32 the depth of then is today's, and not added.
    """
    if "origin" in params:
        # A model that was trained elsewhere has no parameters of a training.
        return params
    if not sides or max(sides) > HALVED_TWICE:
        params = {key: str(value) for key, value in with_depth(params).items()}
    for field, added in ADDED.items():
        if field in params:
            params = {key: str(value) for key, value in added.items()} | params
    return {"pca_epochs": "0"} | params if params.get("model") in ENCODERS else params


def defaults(today: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a model's config in 0.1.0, of the fields of ``today``'s."""
    then = {"epochs": 30, "schedule": "cosine", "pca_epochs": 0, "depth": DEPTH}
    then |= ADDED["schedule"] | ADDED["latent_dim"]
    # A classifier and a closed form had these of their own then too.
    own = set() if today["epochs"] == Config().epochs else {"epochs", "min_improvement"}
    return {key: value for key, value in then.items() if key in today and key not in own}
