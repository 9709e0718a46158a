"""Models that were trained elsewhere: pythae's, diffusers', and those of a user's class, evaluated as any other."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from mlflow.artifacts import download_artifacts
from torch import nn

from elbolab.config.schema import EvaluateConfig, ExploreConfig, LikelihoodConfig, PromoteConfig
from elbolab.data.batches import Data
from elbolab.data.splits import load_data
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.experiment.adopt import adopt
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import resume
from elbolab.explorer.page import explore
from elbolab.models.adopted import Adopted
from elbolab.registry.packaging import load_model
from elbolab.registry.versions import promote
from elbolab.support import user_code
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.tracking.artifacts import list_artifacts

SIZES: dict[str, Any] = {"train_size": 100, "val_size": 20, "test_size": 20}
FEW = EvaluateConfig(images=5, budget=64, simulated=0)
PYTHAE: dict[str, dict[str, Any]] = {
    "VAE": {},
    "BetaVAE": {"beta": 2.0},
    "IWAE": {"number_samples": 3},
    "VAMP": {"number_components": 7, "linear_scheduling_steps": 2},
}


def digits() -> Data:
    return load_data("mnist5k", Path(), *SIZES.values())


def images() -> torch.Tensor:
    return digits().train.images.float() / 255


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What pythae's own trainings left, by kind."""
    models = pytest.importorskip("pythae.models")
    trainers, pipelines = pytest.importorskip("pythae.trainers"), pytest.importorskip("pythae.pipelines")
    out = tmp_path_factory.mktemp("pythae")
    before, random = dict(os.environ), torch.get_rng_state()
    for kind, more in PYTHAE.items():
        config = getattr(models, f"{kind}Config")(
            input_dim=(1, 28, 28), latent_dim=3, reconstruction_loss="mse", **more
        )
        training = trainers.BaseTrainerConfig(
            output_dir=str(out / kind), num_epochs=4, learning_rate=1e-3, per_device_train_batch_size=25, no_cuda=True
        )
        pipeline = pipelines.TrainingPipeline(model=getattr(models, kind)(config), training_config=training)
        pipeline(train_data=images()[:80], eval_data=images()[80:])
    os.environ.clear()
    os.environ.update(before)
    torch.set_rng_state(random)
    return {kind: next((out / kind).glob("*/final_model")) for kind in PYTHAE}


def adopted(source: Any, **fields: Any) -> tuple[str, Adopted]:
    run = adopt(source, **SIZES, **fields)
    model = load_model(run)
    assert isinstance(model, Adopted)
    return run, model


@pytest.mark.parametrize("kind", PYTHAE)
def test_a_model_of_pythae_is_the_same_density_here(store: Path, folders: dict[str, Path], kind: str):
    from pythae.models import AutoModel

    theirs: Any = AutoModel.load_from_folder(str(folders[kind])).eval()
    before = torch.get_rng_state()
    run, model = adopted(str(folders[kind]), sigma=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    tags = mlflow_reader.get_run(run).tags
    assert tags["adopted"] == f"pythae 0.1.2: {folders[kind].parent.name}/final_model"
    assert mlflow_reader.get_run(run).params["model"] == kind
    x, z = images()[:6], torch.randn(4, 3)
    with torch.no_grad():
        found = theirs.encoder(x)
        q = model.infer(digits().train.batch(torch.arange(6)))
        assert torch.equal(q.mean, found.embedding)
        assert torch.equal(q.parameters["log_var"], found.log_covariance)
        assert torch.equal(model.decode(z), theirs.decoder(z).reconstruction)
        if kind == "VAMP":
            # pythae leaves a constant of the prior out.
            exact = theirs._log_p_z(z) - 1.5 * math.log(2 * math.pi)
            torch.testing.assert_close(model.prior.log_prob(z), exact)
        # pythae's figure is the mean of log p(x), of as many samples as a batch has.
        nll = [theirs.get_nll(x, n_samples=2000, batch_size=2000) for _ in range(3)]
        config = LikelihoodConfig(method="importance", samples=20_000)
        estimate = estimate_log_px(model, x, q, config, torch.Generator().manual_seed(0))
    error = 4 * (estimate.std_err.square().mean().sqrt().item() + float(np.std(nll, ddof=1))) + 0.05
    assert abs(estimate.log_px.mean().item() - float(np.mean(nll))) < error


def test_what_is_adopted_is_evaluated_explored_registered_and_served(store: Path, folders: dict[str, Path]):
    run, model = adopted(str(folders["VAE"]), sigma=0.4, name="theirs")
    with pytest.raises(UserError, match=rf"^run {run} is adopted, and is not trained here"):
        resume(run, "vae", {}, new_run=True)
    found = evaluate_run(run, FEW)
    assert "test/log_px" in found
    page = explore([run], ExploreConfig(images=10, out=store / "page.html"))
    assert "decode" in page.read_text()
    assert promote(run, PromoteConfig(name="theirs")) == "models:/theirs/1"
    served = mlflow.pyfunc.load_model("models:/theirs/1")
    x = np.zeros((2, 28, 28, 1), np.uint8)
    expected = model.expected(torch.as_tensor(served.predict(x, params={"op": "encode"})["mean"]))
    assert np.array_equal(served.predict(x), expected.permute(0, 2, 3, 1).numpy())
    requirements = Path(download_artifacts("models:/theirs/1/requirements.txt")).read_text()
    assert "pythae==0.1.2" in requirements


def test_an_autoencoder_of_diffusers_is_the_same_map_here(store: Path, capsys: pytest.CaptureFixture[str]):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()
    theirs.save_pretrained("kl")
    run, model = adopted("kl", sigma=0.2)
    assert "by no likelihood" in capsys.readouterr().err
    assert mlflow_reader.get_run(run).params["latent_dim"] == str(2 * 14 * 14)
    batch = digits().val.batch(torch.arange(3))
    with torch.no_grad():
        q = theirs.encode(2 * batch.x - 1).latent_dist
        torch.testing.assert_close(model.infer(batch).mean, q.mean.flatten(1))
        torch.testing.assert_close(model.decode(q.mean.flatten(1)), (theirs.decode(q.mean).sample + 1) / 2)
    config = LikelihoodConfig(method="importance", samples=10)
    assert estimate_log_px(model, batch.x, model.infer(batch), config, torch.Generator()).log_px.isfinite().all()
    # Where q is not good enough, the estimate needs gradients of the decoder.
    z = torch.randn(1, 392, requires_grad=True)
    model.decode(z).sum().backward()
    assert z.grad is not None
    with pytest.raises(UserError, match="cannot decode as Adopted does"):
        explore([run], ExploreConfig(images=5, out=store / "page.html"))


ADAPTER = """
import torch
from torch import nn

class Mine(nn.Module):
    gives = "logits"

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 6)
        self.decoder = nn.Linear(3, 784)

    def load(self):
        self.load_state_dict(torch.load("mine.pt", weights_only=True))

    def encode(self, x):
        return self.encoder(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z).view(-1, 1, 28, 28)
"""


@pytest.fixture
def weights(store: Path) -> dict[str, torch.Tensor]:
    (store / "mine.py").write_text(ADAPTER)
    torch.manual_seed(3)
    module = user_code.find("mine.py:Mine")()
    torch.save(module.state_dict(), "mine.pt")
    return module.state_dict()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "continuous_bernoulli"])
def test_a_class_of_a_file_is_adopted_with_the_weights_that_it_reads(store: Path, weights: Any, likelihood: str):
    run, model = adopted("mine.py:Mine", likelihood=likelihood)
    assert list_artifacts(run, "code") == ["code/mine.py"]
    assert all(torch.equal(model.adapter.state_dict()[key], value) for key, value in weights.items())
    Path("mine.pt").unlink()
    Path("mine.py").unlink()
    user_code._objects.clear()
    with pytest.raises(UserError, match=r"^mine\.py:Mine is code that came with the model"):
        load_model(run)
    again = load_model(run, trust=True)
    assert isinstance(again, Adopted)
    z = torch.randn(2, 3)
    logits = nn.functional.linear(z, weights["decoder.weight"], weights["decoder.bias"]).view(2, 1, 28, 28)
    torch.testing.assert_close(again.decode(z), logits.sigmoid() if likelihood == "gaussian" else logits)
    explore([run], ExploreConfig(images=5, out=store / "page.html"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": "learned"}, "sigma='learned': an adopted model is trained no further; give the number"),
        ({"likelihood": "discretised_logistic"}, "likelihood='discretised_logistic': takes 2 parameters a pixel"),
    ],
)
def test_a_likelihood_that_an_adapter_does_not_decode_for_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        adopted("mine.py:Mine", **fields)


def test_the_adapter_of_the_page_is_adopted(store: Path):
    page = (REPOSITORY / "docs" / "adopting.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    (store / "page.py").write_text(found[1])
    module = user_code.find("page.py:Adapter")()
    torch.save(module.state_dict(), "weights.pt")
    _, model = adopted("page.py:Adapter", sigma=0.3)
    z = torch.randn(2, 16)
    assert torch.equal(model.decode(z), module.decode(z))


class Instance(nn.Module):
    """An adapter of a module of this process."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        self.net = nn.Linear(784, 2 * dims)
        self.back = nn.Linear(dims, 784)

    def encode(self, x: torch.Tensor) -> Any:
        return self.net(x.flatten(1)).chunk(2, 1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.back(z).sigmoid().view(-1, 1, 28, 28)


def test_a_module_of_this_process_is_adopted(store: Path):
    module = Instance()
    _, model = adopted(module)
    assert torch.equal(model.adapter.net.weight, module.net.weight)
    with pytest.raises(UserError, match=r"made anew, does not take its own weights: .*size mismatch"):
        adopt(Instance(5), **SIZES)


BAD = {
    "def encode(self, x): return self.encoder(x.flatten(1))": r"^Bad\.encode gives Tensor, not a mean and a log-var",
    "def encode(self, x): return self.encoder(x[:, :, 1:].flatten(1)).chunk(2, 1)": (
        r"^bad\.py:Bad does not encode images \(1, 28, 28\) of mnist5k: RuntimeError: .*\(linear\.py, line \d+\)"
    ),
    "def encode(self, x): return x.flatten(1), x[:, :, 1:]": (
        r"^Bad\.encode of images \(1, 1, 28, 28\) gives \(1, 784\) and \(1, 1, 27, 28\); both should be \(1, D\)"
    ),
    "def decode(self, z): return self.decoder(z)": (
        r"^the decoder of bad\.py:Bad for latent vectors \(2, 3\) has the shape \(2, 784\), and should have \(2, 1,"
    ),
    "decode = None": r"^Bad has no decode; define encode",
    "def __init__(self, size): super().__init__()": r"^Bad\(\) fails: TypeError: .*; it must be made without arguments",
    "def load(self): raise OSError('no file')": r"^Bad\.load\(\) fails: OSError: no file",
    "def load(self): self.encoder.weight.data[:] = float('nan')": r"encoder\.weight has numbers that are not finite",
}


@pytest.mark.parametrize("body", BAD)
def test_an_adapter_that_is_none_is_told_before_a_run_begins(store: Path, body: str):
    (store / "bad.py").write_text(f"{ADAPTER.replace('Mine', 'Good')}\nclass Bad(Good):\n    load = None\n    {body}\n")
    with pytest.raises(UserError, match=BAD[body]) as raised:
        adopt("bad.py:Bad", **SIZES)
    assert "\n" not in str(raised.value)
    assert not mlflow_reader.find_runs(status=None)


def test_what_cannot_be_adopted_is_one_line(store: Path, folders: dict[str, Path]):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/model_config.json").write_text(json.dumps({"name": "VQVAEConfig"}))
    Path("unet").mkdir()
    Path("unet/config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    Path("weightless").mkdir()
    Path("weightless/model_config.json").write_text((folders["VAE"] / "model_config.json").read_text())
    Path("torn").mkdir()
    Path("torn/model_config.json").write_text("{")
    for source, message in (
        ("nothing", r"^nothing is no folder and no path/to/file\.py:Adapter"),
        ("empty", r"^empty has neither of model_config\.json, config\.json"),
        ("other", r"^other has a VQVAE of pythae; there are adapters of: VAE, BetaVAE, IWAE, VAMP"),
        ("unet", r"^unet has a UNet2DModel of diffusers; there are adapters of: AutoencoderKL"),
        (".", r"^\. has neither of model_config\.json, config\.json.*; there is one in \./(torn|unet|other)"),
        ("weightless", r"^weightless has no model\.pt"),
        ("torn", r"^torn cannot be read as a model of pythae: JSONDecodeError"),
    ):
        with pytest.raises(UserError, match=message):
            adopt(source, **SIZES)
    np.savez("other_shape.npz", images=np.random.default_rng(0).integers(0, 255, (40, 16, 16), np.uint8))
    with pytest.raises(UserError, match=r"^name='vae' is the name of a model of elbolab's own"):
        adopt(str(folders["VAE"]), name="vae", **SIZES)
    with pytest.raises(UserError, match=r"final_model does not encode images \(1, 16, 16\) of .*RuntimeError"):
        adopt(str(folders["VAE"]), dataset="npz:other_shape.npz")


def test_pickles_of_a_folder_are_read_where_it_is_trusted(store: Path):
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.default_architectures import Encoder_VAE_MLP

    config: Any = VAEConfig(input_dim=(1, 28, 28), latent_dim=3)
    VAE(config, encoder=Encoder_VAE_MLP(config)).save("own")
    with pytest.raises(UserError, match=r"^own has nets as pickles, which execute code when they are read; add"):
        adopt("own", **SIZES)
    assert adopt("own", trust=True, **SIZES)
