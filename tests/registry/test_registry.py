"""Registered models: who becomes champion, and what a version answers, here, in a bare environment and over HTTP."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import mlflow
import mlflow.artifacts
import numpy as np
import pytest
import torch
from conftest import free_port, wait_for_server

from elbolab import MODELS, load_model
from elbolab.cli import cli
from elbolab.config.schema import EvaluateConfig, LikelihoodConfig, PromoteConfig
from elbolab.data.splits import Data
from elbolab.evaluation.log_likelihood import estimate_log_px
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models.latent import LatentModel
from elbolab.registry import packaging
from elbolab.registry.pyfunc import Served
from elbolab.registry.versions import list_versions, promote
from elbolab.support.errors import UserError
from elbolab.tracking.artifacts import model_of
from elbolab.training.checkpoint import load_checkpoint, save_checkpoint

TINY: dict[str, Any] = {"train_size": 40, "val_size": 20, "test_size": 20, "epochs": 1}
FAST: dict[str, dict[str, Any]] = {
    "cnn": {},
    "vae": {"latent_dim": 4},
    "latent_opt": {"latent_dim": 4, "fit_steps": 20},
    "ppca": {"latent_dim": 4},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Evaluated runs of every model by name, and `better`, a vae of more epochs, on a store of this module."""
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("registry")
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        wanted = {name: (name, fast) for name, fast in FAST.items()} | {
            "better": ("vae", {"latent_dim": 4, "epochs": 9})
        }
        runs = {key: train_model(name, MODELS[name].Config.parse(TINY | fast)) for key, (name, fast) in wanted.items()}
        for run_id in runs.values():
            evaluate_run(run_id, EvaluateConfig(method="importance", samples=50, images=20))
        yield runs
    mlflow.set_tracking_uri(before)


def images(digits: Data, count: int = 3) -> np.ndarray:
    return digits.test.images[:count].permute(0, 2, 3, 1).numpy()


def pixels(digits: Data, count: int = 3) -> torch.Tensor:
    return digits.test.images[:count].float() / 255


def test_a_version_answers_what_the_module_computes(trained: dict[str, str], digits: Data):
    model = load_model(trained["vae"])
    assert isinstance(model, LatentModel)
    served = mlflow.pyfunc.load_model(f"models:/{model_of(trained['vae'])}")
    batch = digits.test.batch(torch.arange(3))
    q = model.infer(batch)

    def ask(**params: Any) -> Any:
        return served.predict(images(digits), params=params)

    np.testing.assert_array_equal(ask(), model.reconstruct(q).permute(0, 2, 3, 1))
    encoded = ask(op="encode")
    np.testing.assert_array_equal(encoded["mean"], q.mean)
    np.testing.assert_array_equal(encoded["log_var"], q.parameters["log_var"])
    np.testing.assert_array_equal(ask(op="sample", n=5, seed=7), model.sample(5, 7).permute(0, 2, 3, 1))
    config = LikelihoodConfig(method="importance", samples=40)
    estimate = estimate_log_px(model, batch.x, q, config, torch.Generator().manual_seed(3))
    found = ask(op="log_px", method="importance", samples=40, seed=3)
    assert set(found) == {"log_px", "std_err", "ess", "unreliable"}
    for key, values in found.items():
        np.testing.assert_array_equal(values, getattr(estimate, key))
    assert not np.array_equal(ask(op="log_px", method="importance", samples=40, seed=4)["log_px"], found["log_px"])
    config = LikelihoodConfig(samples=40)
    estimate = estimate_log_px(model, batch.x, q, config, torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(ask(op="log_px", samples=40, seed=3)["log_px"], estimate.log_px)


def test_ppca_answers_exactly_and_latent_opt_by_its_protocol(trained: dict[str, str], digits: Data):
    ppca = load_model(trained["ppca"])
    assert isinstance(ppca, LatentModel)
    found = mlflow.pyfunc.load_model(f"models:/{model_of(trained['ppca'])}").predict(
        images(digits), params={"op": "log_px"}
    )
    assert set(found) == {"log_px", "std_err", "unreliable"}
    np.testing.assert_array_equal(found["log_px"], ppca.exact_log_px(pixels(digits)))
    assert not found["std_err"].any()

    latent_opt = load_model(trained["latent_opt"])
    assert isinstance(latent_opt, LatentModel)
    fitted = latent_opt.infer(digits.test.batch(torch.arange(3)), torch.Generator().manual_seed(5))
    served = mlflow.pyfunc.load_model(f"models:/{model_of(trained['latent_opt'])}")
    np.testing.assert_array_equal(
        served.predict(images(digits), params={"op": "encode", "seed": 5})["mean"], fitted.mean
    )


def test_a_cnn_classifies_and_nothing_else(trained: dict[str, str], digits: Data):
    served = mlflow.pyfunc.load_model(f"models:/{model_of(trained['cnn'])}")
    probabilities = served.predict(images(digits))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    with pytest.raises(Exception, match="op='encode' must be one of classify"):
        served.predict(images(digits), params={"op": "encode"})


def test_a_version_is_code_weights_and_json(trained: dict[str, str]):
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_of(trained['latent_opt'])}"))
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".py", ".j2", ".js", ".json", ".yaml", ".txt", ".safetensors", ""}
    # MLflow's own note of the registered version comes with the download, once there is one.
    assert {path.name for path in folder.rglob("*") if path.is_file() and not path.suffix} - {
        "registered_model_meta"
    } == {"MLmodel"}
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert not any(line.startswith("elbolab") for line in requirements)
    served = mlflow.pyfunc.load_model(str(folder))
    assert served.input_example is not None
    assert (params := served.metadata.get_params_schema()) is not None
    assert {param.name for param in params} == {"op", "n", "samples", "method", "seed"}


def test_the_champion_gives_way_only_to_a_better_one(trained: dict[str, str]):
    config = PromoteConfig(name="digits")
    with pytest.raises(UserError, match="evaluated"):
        promote(train_model("ppca", MODELS["ppca"].Config.parse(TINY | FAST["ppca"])), config)
    assert promote(trained["vae"], config) == "models:/digits/1"
    assert promote(trained["better"], config) == "models:/digits/2"
    client = mlflow.MlflowClient()
    description = client.get_model_version("digits", "2").description or ""
    metrics = client.get_run(trained["better"]).data.metrics
    for split in ("val", "test"):
        assert f"{split}/log_px {metrics[f'{split}/log_px']:.4g} ± {metrics[f'{split}/log_px_se']:.2g}" in description
    for word in ("vae on mnist5k", "gaussian sigma=0.4", trained["better"], "version 1 before it had"):
        assert word in description
    with pytest.raises(UserError, match=r"val/log_px .* is below val/log_px .* of version 2, the champion of 'digits'"):
        promote(trained["vae"], config)
    with pytest.raises(UserError, match=r"metric is 'accuracy' here and 'log_px' there"):
        promote(trained["cnn"], config)
    assert len(client.search_model_versions("name = 'digits'")) == 2
    assert promote(trained["better"], config) == "models:/digits/2"

    # Registered by another hand, without a word on how good it is.
    mlflow.register_model(f"models:/{model_of(trained['ppca'])}", "digits")
    client.set_registered_model_alias("digits", "champion", "3")
    with pytest.raises(UserError, match="version 3, the champion of 'digits', says nothing"):
        promote(trained["vae"], config)
    assert promote(trained["vae"], PromoteConfig(name="digits", force=True)) == "models:/digits/1"
    assert load_model("models:/digits@champion").config == load_model(trained["vae"]).config
    assert [version.aliases for version in list_versions()] == [["champion"], [], []]


def test_what_was_trained_on_a_gpu_loads_on_a_cpu(digits: Data, tmp_path: Path):
    path = tmp_path / "best.safetensors"
    config = MODELS["vae"].Config.parse({"latent_dim": 3, "net": "mlp", "hidden": 4, "device": "cuda"})
    save_checkpoint(path, MODELS["vae"](config, digits.spec), 1)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    # Of where a tensor was the file says nothing.
    assert all(entry.keys() == {"dtype", "shape", "data_offsets"} for key, entry in header.items() if key[0] != "_")
    model = load_checkpoint(path)
    assert model.config.device == "cuda"
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    served = Served()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": path}))
    assert np.asarray(served.predict(None, images(digits))).shape == (3, 28, 28, 1)


def test_requirements_name_no_build_that_an_index_lacks(
    trained: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(packaging, "version", lambda name: "2.11.0+cpu" if name == "torch" else "1.0")
    checkpoint = mlflow.artifacts.download_artifacts(f"runs:/{trained['ppca']}/checkpoints/best.safetensors")
    with mlflow.start_run() as run:
        packaging.log_model(run.info.run_id, Path(checkpoint), np.zeros((1, 28, 28, 1), np.uint8))
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{packaging.model_of(run.info.run_id)}"))
    lines = (folder / "requirements.txt").read_text().split()
    assert "torch==2.11.0" in lines
    assert not any("+" in line for line in lines)


def test_figures_that_are_missing_or_not_to_be_trusted_are_said_so(trained: dict[str, str]):
    run = train_model("vae", MODELS["vae"].Config.parse({**TINY, "latent_dim": 30, "seed": 5}))
    evaluate_run(run, EvaluateConfig(method="importance", samples=50, images=1))
    with pytest.raises(
        UserError, match=rf"{run}' has no val/log_px_se, test/log_px_se, .*; `elbolab evaluate {run} --im"
    ):
        promote(run, PromoteConfig(name="doubtful"))
    found = evaluate_run(run, EvaluateConfig(method="importance", samples=50, images=20))
    promote(run, PromoteConfig(name="doubtful"))
    description = mlflow.MlflowClient().get_model_version("doubtful", "1").description or ""
    for split in ("val", "test"):
        said = f"{split}/log_px {found[f'{split}/log_px']:.4g} ± {found[f'{split}/log_px_se']:.2g}"
        assert (f"{said}\u2020" in description) == (found[f"{split}/unreliable"] > 0.5)
    assert "\u2020 unreliable: may be much too low; method importance, samples 50" in description


@pytest.mark.parametrize("alias", ["latest", "v2", "a b", ""])
def test_an_alias_that_mlflow_refuses_is_refused_before_anything_is_registered(alias: str):
    with pytest.raises(UserError, match="alias="):
        PromoteConfig.parse({"name": "digits", "alias": alias})


def test_the_commands_promote_and_list(trained: dict[str, str], capsys: pytest.CaptureFixture[str]):
    cli(["promote", trained["better"], "--name", "listed", "--alias", "best"], standalone_mode=False)
    cli(["models"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "models:/listed/1"
    assert [line for line in lines if line.startswith("models:/listed/1 @best: vae on mnist5k")]


BARE = """
import importlib.util, sys
import mlflow, numpy as np
assert importlib.util.find_spec("elbolab") is None
mlflow.set_tracking_uri(sys.argv[1])
served = mlflow.pyfunc.load_model("models:/bare@champion")
np.save(sys.argv[2], served.predict(np.load(sys.argv[3])))
"""


@pytest.mark.parametrize(
    "installed", [pytest.param(False, marks=pytest.mark.scale), pytest.param(True, marks=pytest.mark.install)]
)
def test_a_version_loads_and_serves_where_there_is_no_elbolab(
    trained: dict[str, str], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
):
    """In a fresh environment that has the version's requirements, ``installed`` anew or lent by this one."""
    promote(trained["better"], PromoteConfig(name="bare"))
    expected = mlflow.pyfunc.load_model("models:/bare@champion").predict(images(digits))
    folder = Path(mlflow.artifacts.download_artifacts("models:/bare@champion"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    binaries = tmp_path / "bare" / "bin"
    if installed:
        subprocess.run([binaries / "pip", "install", "-q", "-r", folder / "requirements.txt"], check=True)
    else:
        # The packages, but not what a .pth file among them adds: elbolab's source tree.
        (found,) = (tmp_path / "bare").glob("lib/python*/site-packages")
        (found / "lent.pth").write_text(sysconfig.get_path("purelib"))
        # What `mlflow models serve` starts by name.
        (binaries / "uvicorn").write_text(f"#!{binaries}/python\nfrom uvicorn.main import main\nmain()\n")
        (binaries / "uvicorn").chmod(0o755)

    np.save(tmp_path / "images.npy", images(digits))
    paths = [tmp_path / "found.npy", tmp_path / "images.npy"]
    subprocess.run([binaries / "python", "-c", BARE, mlflow.get_tracking_uri(), *paths], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(paths[0]), expected, atol=1e-6)

    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        binaries / "python",
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/bare@champion",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    environment["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        [*command, "--env-manager", "local"], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        wait_for_server(address, server)
        _ask_the_server(address, digits, expected)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _ask_the_server(address: str, digits: Data, expected: np.ndarray) -> None:
    def post(body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)["predictions"]
        except HTTPError as error:
            return error.code, json.load(error)["message"]

    good = images(digits).tolist()
    status, found = post({"inputs": good})
    assert status == 200
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = np.array(good[:1], dtype=float)
    for body, words in [
        (
            {"inputs": good[0]},
            r"images must be of shape (N, 28, 28, 1) with N from 1 to 500, but theirs is (28, 28, 1)",
        ),
        ({"inputs": good[:1] * 501}, "but theirs is (501, 28, 28, 1)"),
        ({"inputs": (one / 255).tolist()}, "pixels must be whole numbers from 0 to 255"),
        ({"inputs": (one * float("nan")).tolist()}, "pixels must be whole numbers from 0 to 255"),
        ({"inputs": (one - 300).astype(int).tolist()}, "pixels must be whole numbers from 0 to 255"),
        ({"inputs": one.astype(str).tolist()}, "pixels must be whole numbers from 0 to 255"),
        ({"inputs": good, "params": {"op": "dream"}}, "op='dream' must be one of reconstruct, encode, sample, log_px"),
        (
            {"inputs": good[:1], "params": {"op": "log_px", "samples": 1_000_000}},
            "samples=1000000 must be from 2 to 200000 for the 1 images of this request",
        ),
        ({"inputs": good[:1], "params": {"op": "sample", "n": 1_000_000}}, "n=1000000 must be from 1 to 500"),
        ({"inputs": good[:1], "params": {"op": "sample", "n": "many"}}, "n"),
        (b"{", "JSON"),
        ({}, "inputs"),
    ]:
        status, message = post(body)
        assert 400 <= status < 500, (body, message)
        assert words in message
        if not words.startswith(("n", "JSON", "inputs")):
            assert "\n" not in message
    assert post({"inputs": good})[1] == found
