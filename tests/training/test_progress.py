"""What a person reads while a model trains."""

import pytest

from elbolab.training.progress import Progress
from elbolab.training.trainer import Event

LOSSES = {"train/loss": 90.0, "val/loss": 95.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        # The loss of a latent-variable model has a weight of the KL term in it that changes from epoch to epoch.
        ({"train/elbo": -101.0, "val/elbo": -103.5}, "-ELBO 101, validation 103.5"),
        ({"train/accuracy": 0.9, "val/accuracy": 0.8}, "loss 90, validation 95"),
    ],
)
def test_a_latent_variable_model_tells_its_elbo_at_beta_one(
    more: dict[str, float], said: str, capsys: pytest.CaptureFixture[str]
):
    event = Event(
        epoch=1, epochs=2, is_open=False, converged=None, best=True, metrics=LOSSES | more, images={}, seconds_left=3
    )
    with Progress("model", 2) as progress:
        progress(event)
    assert said in capsys.readouterr().err
