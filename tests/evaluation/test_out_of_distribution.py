"""Scores of images of other data: their mathematics, what they find of made data, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, batch_of, linear_gaussian, trained
from PIL import Image

import elbolab
from elbolab.config.schema import CompareConfig, EvaluateConfig, MainConfig
from elbolab.data import Data, load_data
from elbolab.evaluation import Evaluation
from elbolab.evaluation.importance_sampling import log_weights
from elbolab.evaluation.out_of_distribution import complexity, likelihood_regret, out_of_distribution
from elbolab.experiment.evaluate import evaluate_run, is_of, protocol
from elbolab.experiment.loading import load_others
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.report.commands import evaluate_again
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tuning.reproduction import Reproduction, reproduce

TINY: dict[str, Any] = {"train_size": 400, "val_size": 50, "test_size": 50, "latent_dim": 4, "net": "mlp", "hidden": 64}
QUICK = {"samples": 100, "images": 40, "simulated": 0, "budget": 1}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vae() -> tuple[Any, Data]:
    """A vae after some epochs, and its data."""
    data = load_data("mnist5k", Path(), train_size=400, val_size=50, test_size=50)
    model = trained("vae", data, **TINY)
    (optimizer,) = model.optimizers()
    for epoch in range(15):
        for batch in data.train.batches(50, stream(epoch)):
            optimizer.zero_grad()
            model.loss(model.terms(batch, 1, stream(epoch)), 1.0).backward()
            optimizer.step()
    return model.eval(), data


def test_the_regret_of_an_exact_posterior_is_zero():
    model, x = linear_gaussian(3)
    assert torch.equal(likelihood_regret(model, x, model.infer(batch_of(x)), stream()), torch.zeros(8).double())


def test_the_regret_is_what_the_best_posterior_of_an_image_gains(monkeypatch: pytest.MonkeyPatch):
    """Of a linear decoder that is known: KL(q || p(z | x)), since the best q of the family is the exact one."""
    model, x = linear_gaussian(3)
    monkeypatch.setattr(type(model), "inference", "encoder")
    exact = model.infer(batch_of(x))
    q = exact.around(exact.mean + 0.3, exact.variance.log() + 1)
    z = q.sample(20_000, stream(1))
    divergence = (q.log_prob(z) - exact.log_prob(z)).mean(0)
    regret = torch.stack([likelihood_regret(model, x, q, stream(seed)) for seed in range(8)]).mean(0)
    assert torch.allclose(regret.float(), divergence, rtol=0.2, atol=0.3)
    assert regret.mean().item() == pytest.approx(divergence.mean().item(), rel=0.05)
    # From the exact posterior steps find nothing, and q counts itself.
    assert likelihood_regret(model, x, exact, stream()).abs().max() < 1e-2


def test_the_regret_is_not_negative_and_little_where_posteriors_are_fitted(vae: tuple[Any, Data]):
    model, data = vae
    batch = data.test.batch(torch.arange(30))
    q = model.infer(batch)
    regret = likelihood_regret(model, batch.x, q, stream())
    noise = log_weights(model, batch.x, q, 100, stream(1)).std(0) / 10
    assert (regret > -2 * noise).all()
    assert regret.mean() > 0.1
    best = trained("latent_opt", data, **TINY, fit_steps=300)
    best.decoder.load_state_dict(model.decoder.state_dict())
    fitted = likelihood_regret(best, batch.x, best.infer(batch, stream(2)), stream(3))
    assert fitted.mean().abs() < 0.1 * regret.mean()


def test_complexity_is_that_of_a_lossless_file():
    flat, noise = torch.full((2, 3, 16, 16), 0.5), torch.rand(2, 3, 16, 16, generator=stream())
    simple, complex_ = complexity(flat), complexity(noise)
    assert simple.shape == (2,)
    assert (complex_ - simple > 3 * 256 * 7 * math.log(2)).all()
    assert (complex_ < (3 * 256 + 100) * 8 * math.log(2) * 1.05).all()
    assert complexity(torch.rand(1, 1, 8, 8)).shape == complexity(torch.rand(1, 4, 8, 8)).shape == (1,)


def test_noise_is_told_from_digits_and_digits_are_not_told_from_themselves(vae: tuple[Any, Data]):
    model, data = vae
    random = np.random.default_rng(0).integers(0, 256, data.test.images.shape, np.uint8)
    others = {"noise": with_images(data, random), "same": data.test}
    found = out_of_distribution(Evaluation(model, data, EvaluateConfig.parse(QUICK), None, others))
    for score in ("log_px", "elbo", "regret"):
        assert found.metrics[f"ood/auroc_{score}_noise"] > 0.99
    for score in ("log_px", "elbo", "regret", "complexity"):
        # The same images, whose estimates have other noise.
        assert found.metrics[f"ood/auroc_{score}_same"] == pytest.approx(0.5, abs=0.1)
    table = found.files["ood.parquet"]
    assert table.dataset.value_counts().to_dict() == {"": 40, "noise": 40, "same": 40}
    assert table[table.dataset == ""]["index"].tolist() == table[table.dataset == "same"]["index"].tolist()
    mean = table[table.dataset == "noise"].regret.mean()
    assert found.metrics["ood/regret_noise"] == pytest.approx(mean)
    assert mean > 10 * found.metrics["test/regret"]


def with_images(data: Data, images: np.ndarray) -> Any:
    return replace(data.test, images=torch.from_numpy(images))


def test_simple_images_are_likelier_than_the_models_own(vae: tuple[Any, Data]):
    """The known failure of likelihoods (Nalisnick et al. 2019): an AUROC below a half."""
    model, data = vae
    dark = np.zeros(data.test.images.shape, np.uint8)
    dark[:, :, 12:15, 13:15] = np.random.default_rng(0).integers(150, 256, (len(dark), 1, 3, 2))
    found = out_of_distribution(
        Evaluation(model, data, EvaluateConfig.parse(QUICK), None, {"dark": with_images(data, dark)})
    )
    assert found.metrics["ood/auroc_log_px_dark"] < 0.2
    assert found.metrics["ood/auroc_complexity_dark"] > found.metrics["ood/auroc_log_px_dark"]


@pytest.fixture
def files(store: Path) -> dict[str, str]:
    """Data sets beside the embedded digits, each named as --dataset takes it."""
    test = load_data("mnist5k", Path()).test
    images, labels = test.images.numpy(), test.labels.numpy()
    made: dict[str, Any] = {
        "inverted": (255 - images, labels),
        "unlabelled": 255 - images,
        "few": (255 - images[:30], labels[:30]),
        "rgb": (np.repeat(images, 3, 1), labels),
        "large": (np.repeat(np.repeat(images, 2, 2), 2, 3), labels),
    }
    return {name: elbolab.save_dataset({"train": one, "test": one}, f"{name}.npz") for name, one in made.items()}


def test_what_cannot_be_is_said_before_any_work(files: dict[str, str], command_here: Command):
    run = train_model("ppca", MODELS["ppca"].Config.parse({"latent_dim": 3, "train_size": 100}))
    for ood, words in (
        (files["rgb"], ["rgb.npz", "(3, 28, 28)", "mnist5k", "(1, 28, 28)", "name data of the same"]),
        (files["large"], ["large.npz", "(1, 56, 56)", "mnist5k"]),
        ("fashon_mnist", ["ood='fashon_mnist'", "beside mnist5k", "did you mean fashion_mnist?"]),
        ("npz:absent.npz", ["ood='npz:absent.npz'", "no such file"]),
        ("mnist5k,mnist5k", ["two of them 'mnist5k'", "give each once"]),
        (f"mnist5k,{files['few']},npz:../{Path.cwd().name}/few.npz", ["two of them 'few'"]),
    ):
        done = command_here("evaluate", run, "--ood", ood)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert all(word in line for word in words), line
    assert "test/log_px" not in mlflow.get_run(run).data.metrics


def test_an_evaluation_with_other_data(files: dict[str, str], command_here: Command):
    run = train_model("vae", MODELS["vae"].Config.parse({**TINY, "epochs": 2, "test_size": 60, "binarise": "half"}))
    plain = evaluate_run(run, EvaluateConfig.parse(QUICK))
    before = mlflow_reader.get_run(run)
    flags = [f"--{key}={value}" for key, value in QUICK.items()]
    names = [files["inverted"], files["few"]]
    done = command_here("evaluate", run, *flags, "--ood", ",".join(names), "--ood", files["unlabelled"])
    assert done.returncode == 0, done.stderr
    after = mlflow_reader.get_run(run)
    # Everything else is as without, and so is what makes two evaluations comparable.
    assert {key: after.metrics[key] for key in plain} == plain
    assert after.tags["evaluation.protocol"] == before.tags["evaluation.protocol"]
    assert after.tags["evaluation.ood"] == ",".join([*names, files["unlabelled"]])
    new = after.metrics.keys() - plain.keys()
    assert {"test/regret", "ood/auroc_log_px_inverted", "ood/auroc_regret_few_se", "ood/log_px_unlabelled"} <= new
    table = artifacts.read(run, "evaluation/ood.parquet", pd.read_parquet)
    assert table.groupby("dataset").size().to_dict() == {"": 40, "inverted": 40, "few": 30, "unlabelled": 40}
    quoted = artifacts.read(run, "evaluation/likelihood.parquet", pd.read_parquet)
    quoted = quoted[(quoted.split == "test") & (quoted.posterior == "encoder")]
    assert table[table.dataset == ""].log_px.tolist() == quoted.log_px.tolist()
    page = compare(CompareConfig(run=(run,)))
    text = (page.parent / "report.md").read_text()
    assert "Out of distribution" in text
    assert f"--ood {','.join([*names, files['unlabelled']])}" in evaluate_again(after)
    assert pd.read_csv(page.parent / "ood.csv").other_images.tolist() == [40, 30, 40]
    # One without takes its place.
    evaluate_run(run, EvaluateConfig.parse(QUICK))
    assert mlflow_reader.get_run(run).metrics.keys() == before.metrics.keys()
    assert "Out of distribution" not in compare(CompareConfig(run=(run,))).read_text()


def test_other_data_are_seen_as_the_own(files: dict[str, str]):
    config = MODELS["vae"].Config.parse({"binarise": "half"})
    data = load_data("mnist5k", Path(), binarise="half")
    (other,) = load_others([files["inverted"]], config, data).values()
    assert set(other.images.unique().tolist()) == {0, 255}
    folder = Path("pictures")
    for name, side in (("one", 20), ("two", 40)):
        for number in range(30):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((side, side), 200, np.uint8)).save(folder / name / f"{number}.png")
    (pictures,) = load_others([f"folder:{folder}"], config, data).items()
    assert pictures[0] == "pictures"
    assert pictures[1].images.shape[1:] == (1, 28, 28)


@pytest.mark.parametrize("name", ["ppca", "latent_opt", "cnn"])
def test_models_that_have_little_or_no_regret_say_so(name: str, store: Path, capsys: pytest.CaptureFixture[str]):
    sizes = {"train_size": 60, "val_size": 20, "test_size": 20, "epochs": 1}
    small = {"latent_dim": 3, "net": "mlp", "hidden": 8} if name == "latent_opt" else {}
    run = train_model(name, MODELS[name].Config.parse({**sizes, **small}))
    capsys.readouterr()
    found = evaluate_run(run, EvaluateConfig(samples=20, images=10, budget=1, simulated=0, ood=("mnist5k",)))
    said = capsys.readouterr().err
    if name == "cnn":
        assert "has no density of images" in said
        assert not [key for key in found if key.startswith("ood/")]
    else:
        assert "likelihood regret is" in said
        assert found["test/regret"] == (0 if name == "ppca" else pytest.approx(0, abs=1))
        assert math.isfinite(found["ood/auroc_log_px_mnist5k"])
    if name == "ppca":
        assert (found["ood/auroc_regret_mnist5k"], found["ood/auroc_regret_mnist5k_se"]) == (0.5, 0)
        assert "ood/log_px_mnist5k_unreliable" not in found


def test_an_evaluation_that_has_scored_more_is_one_without(store: Path):
    config = EvaluateConfig.parse(QUICK)
    more = config.model_copy(update={"ood": ("mnist5k", "npz:own.npz")})
    assert protocol(more) == protocol(config)
    assert EvaluateConfig.parse({"ood": ["mnist5k,npz:own.npz"]}).ood == more.ood
    assert more.changes()["ood"] == "mnist5k,npz:own.npz"
    assert "ood" not in config.params()
    assert "ood" not in MainConfig().params()
    assert MainConfig.parse({"ood": "a,b"}).params()["ood"] == "a,b"
    run = train_model("ppca", MODELS["ppca"].Config.parse({"latent_dim": 3, "train_size": 100}))
    evaluate_run(run, config.model_copy(update={"ood": ("mnist5k",)}))
    record = mlflow_reader.get_run(run)
    assert is_of(record, config)
    assert is_of(record, config.model_copy(update={"ood": ("mnist5k",)}))
    assert not is_of(record, more)
    assert not is_of(record, config.model_copy(update={"samples": 7}))
    assert json.loads(record.tags["evaluation.protocol"])[0].keys() >= {"method", "images"}


def test_a_reproduction_refuses_other_data_before_it_trains(files: dict[str, str]):
    study = Reproduction.parse(
        {
            "question": "Which?",
            "trainings": {"one": {"model": "ppca"}},
            "evaluation": EvaluateConfig(ood=(files["rgb"],)),
            "metrics": ("ood/auroc_log_px_rgb",),
        }
    )
    with pytest.raises(UserError, match=r"rgb\.npz' has images of shape"):
        reproduce("which", study)
    assert mlflow_reader.find_runs(limit=1) == []
