"""Models that start from another run: a table's rows at the posteriors of its encoder, nets from its nets."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from elbolab.cli import cli
from elbolab.experiment.train import prepare, train_model
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.models.latent_opt import STARTS, LatentOpt
from elbolab.registry.packaging import load_model
from elbolab.support.errors import UserError
from elbolab.training.checkpoint import load_checkpoint
from elbolab.training.trainer import train

TINY: dict[str, Any] = {"train_size": 40, "val_size": 20, "test_size": 10, "epochs": 1, "latent_dim": 4}


def config(name: str, **fields: Any) -> Any:
    known = MODELS[name].Config.model_fields
    return MODELS[name].Config.parse({key: value for key, value in (TINY | fields).items() if key in known})


def test_the_rows_start_at_the_posteriors_of_the_encoder(store: Path, tmp_path: Path):
    source = train_model("vae", config("vae"))
    model, data, _ = prepare("latent_opt", config("latent_opt", latent_init=f"encoder:{source}"))
    plain = prepare("latent_opt", config("latent_opt"))[0]
    model.prepare(data)
    vae = load_model(source)
    assert isinstance(model, LatentModel)
    assert isinstance(vae, LatentModel)
    for split in (data.train, data.val):
        batch = split.batch(torch.randperm(20))
        expected, got = vae.infer(batch), model.posterior(batch)
        torch.testing.assert_close(got.mean, expected.mean)
        torch.testing.assert_close(got.rows, expected.rows)
    # Nothing of the encoder is trained, moved or kept, and the checkpoint is a table like any other.
    assert model.state_dict().keys() == plain.state_dict().keys()
    train(model, data, lambda _: None, tmp_path)
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    assert isinstance(loaded, LatentOpt)
    assert loaded.sources == {"latent_init": source}
    assert torch.equal(loaded.train_rows, model.get_parameter("train_rows"))


def test_a_run_that_does_not_fit_is_refused_with_both_values(store: Path):
    vae, cnn = train_model("vae", config("vae")), train_model("cnn", config("cnn"))

    def refused(source: str, **fields: Any) -> str:
        with pytest.raises(UserError) as error:
            prepare("latent_opt", config("latent_opt", latent_init=f"encoder:{source}", **fields))
        return str(error.value)

    assert "latent_dim 4, but this model has 5" in refused(vae, latent_dim=5)
    told = refused(vae, likelihood="bernoulli")
    assert "gaussian sigma=0.4, pixels in [0,1], but this model has bernoulli, pixels binarised dynamically" in told
    assert "CNN, which has no encoder" in refused(cnn)
    assert re.search("data digest [0-9a-f]{32}, but this model has [0-9a-f]{32}", refused(vae, split_seed=1))
    assert "run 'nothing' is not on sqlite" in refused("nothing")


def test_nets_start_from_those_of_a_run_and_a_step_that_moves_nothing_keeps_them(store: Path, tmp_path: Path):
    source = train_model("vae", config("vae"))
    first = load_model(source)
    for name, fields in (("iwae", {}), ("latent_opt", {"latent_init": f"encoder:{source}"})):
        model, data, _ = prepare(name, config(name, start=source, lr=1e-30, **fields))
        train(model, data, lambda _: None, tmp_path)
        last = load_checkpoint(tmp_path / "last.safetensors")
        theirs = {key: value for key, value in first.state_dict().items() if key in last.state_dict()}
        assert {key.partition(".")[0] for key in theirs} == {"decoder", "encoder"} - ({"encoder"} if fields else set())
        for key, value in theirs.items():
            assert torch.equal(last.state_dict()[key], value), (name, key)


def test_nets_of_other_sizes_or_none_are_no_start(store: Path):
    vae, ppca = train_model("vae", config("vae")), train_model("ppca", config("ppca"))
    for run, fields, told in (
        (vae, {"net": "mlp"}, "start='.*' has net conv, but this model has mlp; name a run that has the same"),
        (vae, {"latent_dim": 5}, "latent_dim 4, but this model has 5"),
        (vae, {"binarise": "half"}, r"pixels in \[0,1\], but this model has .* binarised at a half"),
        (ppca, {}, "is a PPCA; name a run of a model with nets"),
    ):
        with pytest.raises(UserError, match=told):
            prepare("vae", config("vae", start=run, **fields))


def test_what_the_field_may_be_is_told_and_a_study_searches_the_three_that_need_no_run():
    for wrong in ("ones", "encoder:", "encoder:a\n"):
        with pytest.raises(UserError, match="should be zeros, normal, pca or encoder:RUN"):
            config("latent_opt", latent_init=wrong)
    found: Any = MODELS["latent_opt"].Config.search_range("latent_init")
    assert found.choices == STARTS == ("zeros", "normal", "pca")
    help_text = CliRunner().invoke(cli, ["latent_opt", "--help"]).output
    assert "one of zeros, normal, pca and encoder:RUN" in " ".join(help_text.split())
