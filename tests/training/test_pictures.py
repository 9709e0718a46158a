"""The pictures of a run: of some epochs, of the best and of the last, the same whether it was interrupted or not."""

from pathlib import Path

import mlflow
import pytest

from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.report.fetch import PICTURES
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.training import pictures, resume_state
from elbolab.training.resume_state import Position, ResumeState

TINY = {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8, "latent_dim": 4, "epochs": 7, "lr": 0.01}


class StoppedError(Exception):
    """What ends a training in the middle."""


def pictures_of(run_id: str) -> dict[str, dict[int, bytes]]:
    return {key: artifacts.step_images(run_id, key) for key in PICTURES}


@pytest.mark.parametrize("model", ["vae", "semi_amortized", "latent_opt"])
def test_best_and_last_are_pictured_and_a_resumed_run_has_the_same(
    model: str, store: Path, monkeypatch: pytest.MonkeyPatch
):
    config = MODELS[model].Config.parse(TINY | ({"beta_warmup": 0.0} if model == "vae" else {}))
    whole = train_model(model, config)
    scores = {one.step: one.value for one in mlflow.MlflowClient().get_metric_history(whole, "val/elbo")}
    best = max(scores, key=lambda epoch: scores[epoch])
    tags = mlflow_reader.get_run(whole).tags
    assert (tags["best_epoch"], tags["last_epoch"]) == (str(best), "7")
    expected = pictures_of(whole)
    assert all([*found] == sorted({1, 5, best, 7}) for found in expected.values())

    monkeypatch.setattr(resume_state, "LEAST_SECONDS", 0)
    monkeypatch.setattr(resume_state, "TIMES_ITS_COST", 0)
    save = ResumeState.save

    def stop(self: ResumeState, at: Position) -> None:
        save(self, at)
        if (at.epoch, at.step) == (6, 2):
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(ResumeState, "save", stop)
        with pytest.raises(StoppedError):
            train_model(model, config)
    (run,) = mlflow.MlflowClient().search_runs(["0"], "attributes.status = 'FAILED'")
    assert resume(run.info.run_id) == run.info.run_id
    assert pictures_of(run.info.run_id) == expected


def test_a_picture_of_the_best_epoch_is_the_one_that_its_weights_give(store: Path, monkeypatch: pytest.MonkeyPatch):
    config = MODELS["vae"].Config.parse(TINY)
    with monkeypatch.context() as patch:
        patch.setattr("elbolab.training.trainer.PICTURE_EPOCHS", range(1, 8))
        every = pictures_of(train_model("vae", config))
    some = pictures_of(train_model("vae", config))
    for key, found in some.items():
        assert {epoch: every[key][epoch] for epoch in found} == found


def test_a_run_has_about_ten_pictures_however_long_it_is():
    assert len(pictures.PICTURE_EPOCHS) <= 9
    assert pictures.PICTURE_EPOCHS[:5] == (1, 5, 10, 20, 30)
