"""A model of the user's own: from a file, a script or a notebook to a run that is resumed, evaluated and served."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click import UsageError
from click.testing import CliRunner
from conftest import Command, mlflow_run
from helpers_studies import carry_out, children, define

from elbolab.cli import cli
from elbolab.config.ranges import FloatRange
from elbolab.config.schema import EvaluateConfig
from elbolab.data.batches import Data
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import prepare, resume, train_model
from elbolab.models import MODELS
from elbolab.models.latent import LatentModel
from elbolab.models.neural import DeepLatentModel, EncoderModel
from elbolab.registry.packaging import load_model
from elbolab.support import user_code
from elbolab.support.errors import UserError
from elbolab.tracking import mlflow_reader
from elbolab.tracking.artifacts import list_artifacts, model_of
from elbolab.tracking.keys import PARENT
from elbolab.training.checkpoint import load_checkpoint, save_checkpoint

TINY = {"train_size": 40, "val_size": 10, "test_size": 10, "latent_dim": 2, "net": "mlp", "hidden": 8, "epochs": 2}
FLAGS = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]
MODEL = '''
"""One of my own."""

import os
import signal
from typing import Annotated

from pydantic import Field

from elbolab.cli import cli
from elbolab.config.ranges import FloatRange
from elbolab.models.vae import VAE, VAEConfig
from scales import times


class MyConfig(VAEConfig):
    gain: Annotated[float, Field(gt=0), FloatRange(0.5, 2)] = 1.0
    """Factor of the latent vectors."""


class MyVAE(VAE):
    """A vae that scales its latent vectors."""

    Config = MyConfig

    def decode(self, z):
        return super().decode(times(self.config.gain, z))

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        if epoch == 2 and os.path.exists("stop"):
            os.kill(os.getpid(), signal.SIGINT)
'''


@pytest.fixture
def word(store: Path) -> str:
    (store / "mine.py").write_text(MODEL)
    (store / "scales.py").write_text("def times(gain, z):\n    return gain * z\n")
    return "mine.py:MyVAE"


def config(word: str, **fields: Any) -> Any:
    return MODELS[word].Config.parse({**TINY, **fields})


def forget() -> None:
    """As in a new process."""
    user_code._objects.clear()


def test_a_file_is_trained_evaluated_and_asked_about_by_the_command_line(store: Path, word: str, command: Command):
    helped = " ".join(CliRunner().invoke(cli, ["train", word, "--help"], prog_name="elbolab").output.split())
    assert f"Usage: elbolab train {word} [OPTIONS]" in helped
    assert "--gain FLOAT Factor of the latent vectors. [> 0; default: 1.0]" in helped
    trained = command("train", word, "--gain", "1.5", *FLAGS)
    assert trained.returncode == 0, trained.stderr
    assert "--trust` measures it" in trained.stderr
    run = mlflow_reader.get_run(trained.stdout.strip())
    code = user_code.digest_of(MODELS[word].code_of(config(word)))
    assert {key: run.params[key] for key in ("model", "gain", "code")} == {
        "model": "MyVAE",
        "gain": "1.5",
        "code": code,
    }
    assert sorted(list_artifacts(run.id, "code")) == ["code/mine.py", "code/scales.py"]
    refused = command("evaluate", run.id, "--images", "5")
    assert refused.returncode == 2
    assert refused.stderr.startswith("elbolab: mine.py:MyVAE is code that came with the model and is not executed")
    assert refused.stderr.count("\n") == 1
    done = command("evaluate", run.id, "--images", "5", "--budget", "16", "--trust", str(store / "mine.py"))
    assert "test/log_px" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py:Other"], r"^mine\.py has no 'Other'; there are: MyConfig, MyVAE$"),
        (["none.py:A"], r"none\.py is not there; name a Python file"),
        (["--gain", "1"], "No such option '--gain'"),
        ([], "^train needs a model"),
        (["mine.py:MyVAE", "--gain", "-1"], r"^gain=-1\.0: should be greater than 0"),
        (["mine.py:MyVAE", "--gains", "1"], r"^No such option '--gains'\.$"),
        (["none"], "^model='none' does not exist; there are: cnn, vae, .* and path/to/file.py:Name$"),
        (["vae", "--net", "none"], "^net='none': should be conv, mlp or path/to/file.py:Name"),
        (["vae", "--net", "none.py:A"], r"none\.py is not there"),
        (["vae", "--net", "mine.py:MyConfig"], r"^net='mine\.py:MyConfig' has no encoder and no decoder; define"),
    ],
)
def test_a_mistake_in_what_is_trained_is_one_line(word: str, arguments: list[str], message: str):
    with pytest.raises((UserError, UsageError), match=message) as raised:
        cli(["train", *arguments], prog_name="elbolab", standalone_mode=False)
    assert "\n" not in str(raised.value)
    assert not Path("unfinished").exists()


def test_a_resumed_run_is_that_of_the_code_with_which_it_began(store: Path, word: str):
    whole = train_model(word, config(word, epochs=4, beta_warmup=0))
    Path("stop").touch()
    with pytest.raises(KeyboardInterrupt):
        train_model(word, config(word, epochs=4, beta_warmup=0))
    Path("stop").unlink()
    Path("scales.py").write_text("def times(gain, z):\n    return 0 * z\n")
    (folder,) = Path("unfinished").iterdir()
    forget()
    # Of a file that was changed since nothing is mixed into the run.
    with pytest.raises(
        UserError, match=r"code=\w+ was \w+ in run \w+, whose parameters stay; `elbolab resume \w+` goes"
    ):
        resume("latest", word, {})
    run = resume("latest")
    assert not folder.exists()
    first, again = (load_model(each, trust=True).state_dict() for each in (whole, run))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert mlflow_reader.get_run(run).params["code"] == mlflow_reader.get_run(whole).params["code"]
    other = resume(run, word, {"epochs": 1}, new_run=True)
    assert mlflow_reader.get_run(other).params["code"] != mlflow_reader.get_run(run).params["code"]


def test_its_code_is_executed_where_it_is_asked_for(store: Path, word: str):
    run = train_model(word, config(word))
    assert type(load_model(run)) is MODELS[word]
    forget()
    Path("other.py").write_text(MODEL.replace("begin_epoch", "end_epoch"))
    Path("away").mkdir()
    Path("away/other.py").write_text("class MyVAE: ...")
    for trust, message in ((False, "not executed unasked"), ("away/other.py", "is not the code of other.py:MyVAE")):
        with pytest.raises(UserError, match=message):
            load_model(run, trust=trust)
    assert load_model(run, trust="mine.py").config.gain == 1
    forget()
    # To know the class is to know its code.
    assert type(load_model(run, trust=MODELS[word])).__name__ == "MyVAE"


SCRIPT = """
import elbolab
from elbolab.models.vae import VAE

GAIN = 3.0

def scaled(z):
    return GAIN * z

class Scripted(VAE):
    def decode(self, z):
        return super().decode(scaled(z))

run = elbolab.train_model(Scripted, Scripted.Config(**{fields}))
elbolab.evaluate_run(run, elbolab.EvaluateConfig(images=5, budget=16))
assert type(elbolab.load_model(run)) is Scripted
print(run)
"""
# A registered version is loaded with these packages alone, and by none of the user's folders.
SERVE = """
import sys
from importlib.abc import MetaPathFinder

class Away(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("optuna", "platformdirs", "filelock", "greenlet"):
            raise ImportError(name)

sys.meta_path.insert(0, Away())
import mlflow, numpy
served = mlflow.pyfunc.load_model(sys.argv[1])
images = numpy.zeros((2, 28, 28, 1), numpy.uint8)
print(served.predict(images, params={"op": "reconstruct"}).tobytes().hex())
import elbolab
print(elbolab.__file__)
"""


def test_a_class_of_a_script_is_served_without_elbolab_and_the_script(store: Path):
    (store / "script.py").write_text(SCRIPT.replace("{fields}", repr(TINY)))
    done = subprocess.run([sys.executable, "script.py"], cwd=store, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = done.stdout.strip().splitlines()[-1]
    model = load_model(run, trust=True)
    assert type(model).__name__ == "Scripted"
    (store / "script.py").unlink()
    uri = f"models:/{model_of(run)}"
    # The package that came with it, and not the one installed here.
    served = subprocess.run(
        [sys.executable, "-c", SERVE, uri],
        cwd=store,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert served.returncode == 0, served.stderr
    pixels, package = served.stdout.split()
    assert "/artifacts/code/elbolab/" in package
    assert isinstance(model, EncoderModel)
    with torch.no_grad():
        x = torch.zeros(2, 1, 28, 28)
        expected = model.reconstruct(model.family.from_rows(model.encoder(x))).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.frombuffer(bytes.fromhex(pixels), np.float32).reshape(expected.shape), expected)


NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in (
    "import elbolab",
    "%time x = 1",
    "from elbolab.models.vae import VAE\\nSHIFT = 0.5",
    "class Cell(VAE):\\n    def decode(self, z):\\n        return super().decode(z - SHIFT)",
    "class Cell(VAE):\\n    def decode(self, z):\\n        return super().decode(z + SHIFT)",
    "run = elbolab.train_model(Cell, Cell.Config(**{fields}))",
    "assert type(elbolab.load_model(run)) is Cell",
):
    shell.run_cell(cell, store_history=True).raise_error()
print(shell.user_ns["run"])
"""


@pytest.mark.scale
def test_a_class_of_a_notebook_cell_is_trained_and_loaded_elsewhere(store: Path):
    text = NOTEBOOK.replace("{fields}", repr(TINY))
    done = subprocess.run([sys.executable, "-c", text], cwd=store, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    model = load_model(done.stdout.strip().splitlines()[-1], trust=True)
    (source,) = model.code.values()
    assert "z + SHIFT" in source.files["main.py"]
    assert "z - SHIFT" not in source.files["main.py"]


def test_a_study_searches_its_own_field_and_goes_on_with_its_own_code_only(store: Path, word: str):
    base = {key: value for key, value in TINY.items() if key != "epochs"} | {"epochs": 1}
    definition = (
        f"from elbolab import Study\nSTUDY = Study(model={word!r}, search=['gain'], base={base}, metrics=['val/elbo'])"
    )
    define(store, "own", definition)
    parent = carry_out("own", trials=2)
    found = children(parent)
    assert {run.data.params["model"] for run in found.values()} == {"MyVAE"}
    assert all(0.5 <= float(run.data.params["gain"]) <= 2 for run in found.values())
    assert MODELS[word].Config.search_range("gain") == FloatRange(0.5, 2).distribution()
    (store / "scales.py").write_text("def times(gain, z):\n    return z\n")
    with pytest.raises(UserError, match=r"mine\.py has the digest \w+ now and had \w+ when study 'own' began"):
        carry_out("own", trials=3)


INIT = "def __init__(self, config, spec):"
DECODE, POSTERIOR = "def decode(self, z):", "def posterior(self, batch, generator=None):"
WRONG = {
    f"{DECODE} return self.decoder(z[..., :1])": r"of latent vectors \(2, 2\) fails: RuntimeError: .*\.py, line \d+\)",
    f"{DECODE} return super().decode(z)[..., :-1]": r"has the shape \(2, 1, 28, 27\), and should have \(2, 1, 28, 28\)",
    f"{DECODE} return super().decode(z).numpy()": r"Bad\.decode .* gives 'ndarray', not a tensor",
    f"{DECODE} return super().decode(z.reshape(-1, 2))": r"\(2, 2, 2\) has the shape \(4, 1, 28, 28\)",
    f"{POSTERIOR} return self.encoder(batch.x)": r"gives 'Tensor', not a Posterior",
    f"{POSTERIOR} return self.family.from_rows(self.encoder(batch.x)[:, :2])": r"the mean of Bad\.posterior of images "
    r"\(2, 1, 28, 28\) has the shape \(2, 1\), and should have \(2, 2\)",
    f"{INIT} super().__init__(config, spec); self.decoder[0].weight.data[0] = float('nan')": (
        r"Bad\.decoder\.0\.weight has numbers that are not finite"
    ),
    f"{INIT} super().__init__(config, spec); self.x = torch.nn.Linear(2, 2, device='meta')": (
        r"Bad\(config, spec\)\.to\('cpu'\) fails: NotImplementedError: Cannot copy out of meta tensor"
    ),
    f"{INIT} torch.nn.Module.__init__(self)": r"Bad\.__init__ does not call super\(\)\.__init__",
    f"{INIT} super().__init__(config, spec); self.lost = torch.randn(2, 2)\n    {DECODE}"
    " return super().decode(z @ self.lost)": (
        r"^Bad, made anew from the code that travels, decodes otherwise with the same weights; keep what it needs as"
    ),
    "def loss(self, terms, kl_weight): return terms.kl": r"^Bad\.loss has the shape \(2,\), and should have \(\)",
    "def metrics(self, terms): return {'kl': 1.0}": r"^Bad's kl gives 'float', not a tensor of shape \(2,\)",
    "def optimizers(self): return None": r"^Bad\.optimizers gives None; it must be a list of torch's optimizers",
    f"{INIT} raise SystemExit(3)": r"^Bad\(config, spec\) fails: SystemExit: 3",
    f"{INIT} super().__init__(config, spec); self.lazy = torch.nn.LazyLinear(2)": r"^Bad\.lazy\.weight is no dense",
    "def __init__(self, config): pass": r"Bad\(config, spec\) fails: TypeError: ",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_model_that_is_none_is_told_before_its_run_begins(store: Path, body: str):
    (store / "bad.py").write_text(f"import torch\nfrom elbolab.models.vae import VAE\nclass Bad(VAE):\n    {body}\n")
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=WRONG[body]) as raised:
        train_model("bad.py:Bad", config("bad.py:Bad"))
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.get_rng_state(), before)
    assert not mlflow_reader.find_runs(status=None)
    assert not Path("unfinished").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class A: ...", r"a\.py:A is a class that derives from object; derive a class from elbolab's Model"),
        ("A = 3", r"a\.py:A is 3; derive a class"),
        (
            "from elbolab.models.latent import LatentModel\nclass A(LatentModel): ...",
            r"a\.py:A has no decode, posterior; ",
        ),
        ("from elbolab.models.vae import VAE\nclass vae(VAE): ...\nA = vae", r"has the name of one of elbolab's own"),
    ],
)
def test_what_is_no_model_is_told(store: Path, text: str, message: str):
    (store / "a.py").write_text(text)
    with pytest.raises(UserError, match=message):
        MODELS.find("a.py:A")


def test_a_config_of_another_model_is_refused(store: Path, word: str):
    with pytest.raises(UserError, match=r"config is a VAEConfig, but MyVAE takes its own; give MyVAE\.Config"):
        prepare(word, MODELS["vae"].Config())


def test_a_checkpoint_of_altered_code_is_refused(tmp_path: Path, word: str, digits: Data):
    kind = MODELS[word]
    save_checkpoint(tmp_path / "own.safetensors", kind(config(word), digits.spec), 1)
    content = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(content.replace(b"gain * z", b"gain - z"))
    with pytest.raises(UserError, match="not as it was written"):
        load_checkpoint(tmp_path / "own.safetensors", trust=True)


@pytest.mark.scale
def test_mlflow_run_trains_a_file(store: Path, word: str):
    done = mlflow_run(store, "train", f"model={store / word}", *(f"{key}={value}" for key, value in TINY.items()))
    assert done.returncode == 0, done.stderr
    (run,) = mlflow_reader.find_runs()
    assert run.params["model"] == "MyVAE"
    (call,) = mlflow_reader.find_runs("train call")
    assert call.tags[PARENT] == run.id


NETS = """
from torch import nn

class MyNets:
    def encoder(self, shape, outputs):
        pixels = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.Softplus(), nn.Linear(16, outputs))

    def decoder(self, latents, shape):
        pixels = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Linear(latents, pixels), nn.Unflatten(1, shape))

class Other(MyNets):
    def encoder(self, shape, outputs):
        return super().encoder(shape, outputs + 1)
"""


@pytest.mark.parametrize("name", ["vae", "iwae", "semi_amortized", "latent_opt"])
def test_every_model_takes_nets_of_a_file(store: Path, name: str):
    (store / "nets.py").write_text(NETS)
    fields = {key: value for key, value in TINY.items() if key != "hidden"} | {"net": "nets.py:MyNets"}
    fields |= {"fit_steps": 2} if name == "latent_opt" else {}
    run = train_model(name, MODELS[name].Config.parse(fields))
    assert mlflow_reader.get_run(run).params["net"] == "nets.py:MyNets"
    assert list_artifacts(run, "code") == ["code/nets.py"]
    (store / "nets.py").unlink()
    forget()
    with pytest.raises(UserError, match=r"^nets\.py:MyNets is code that came with the model"):
        load_model(run)
    model = load_model(run, trust=True)
    assert type(model) is MODELS[name]
    assert isinstance(model, LatentModel)
    assert model.sample(3, 0).shape == (3, 1, 28, 28)
    # Whoever starts from it names the same nets.
    with pytest.raises(UserError, match=r"nets\.py is not there"):
        train_model(name, MODELS[name].Config.parse({**fields, "start": run}))
    (store / "nets.py").write_text(NETS)
    assert train_model(name, MODELS[name].Config.parse({**fields, "start": run}))


def test_nets_of_other_sizes_are_told(store: Path):
    (store / "nets.py").write_text(NETS)
    config = MODELS["vae"].Config.parse({**TINY, "net": "nets.py:Other"})
    wrong = (
        r"^the encoder of nets\.py:Other for images \(2, 1, 28, 28\) has the shape \(2, 5\), and should have \(2, 4\)$"
    )
    with pytest.raises(UserError, match=wrong):
        train_model("vae", config)


@pytest.fixture
def package(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package that adds a model and two evaluators."""
    (store / "site" / "theirs").mkdir(parents=True)
    (store / "site" / "theirs" / "__init__.py").touch()
    (store / "site" / "theirs" / "models.py").write_text(
        "from elbolab.models.vae import VAE\nfrom theirs.sizes import TWO\n"
        "class Theirs(VAE):\n    def decode(self, z):\n        return super().decode(TWO * z)\n"
    )
    (store / "site" / "theirs" / "sizes.py").write_text("TWO = 2.0\n")
    (store / "site" / "theirs" / "found.py").write_text(
        "from elbolab import Results\n"
        "def images(evaluation):\n    return Results({'test/images': float(len(evaluation.data.test))})\n"
        "def broken(evaluation):\n    return 1 / 0\n"
    )
    info = store / "site" / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[elbolab.models]\ntheirs = theirs.models:Theirs\n"
        "[elbolab.evaluators]\ncount = theirs.found:images\nfaulty = theirs.found:broken\n"
    )
    monkeypatch.syspath_prepend(str(store / "site"))
    yield "theirs"
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_an_installed_package_adds_models_and_evaluators(package: str, capsys: pytest.CaptureFixture[str]):
    assert package in MODELS
    assert MODELS.summary(package) == "A model of the package theirs."
    run = train_model(package, MODELS[package].Config.parse(TINY))
    assert mlflow_reader.get_run(run).params["model"] == "theirs"
    found = evaluate_run(run, EvaluateConfig(images=5, budget=16, simulated=0))
    assert found["test/images"] == 10
    said = capsys.readouterr().err
    assert "evaluator 'faulty' of the package theirs: ZeroDivisionError: division by zero (found.py, line 5)" in said
    assert type(load_model(run)) is MODELS[package]
    # Where it is not installed, its code came with the model.
    sys.path.remove(str(Path("site").absolute()))
    assert package not in MODELS
    forget()
    with pytest.raises(UserError, match=r"^theirs/models\.py:Theirs is code that came with the model"):
        load_model(run)
    z = torch.ones(1, 2)
    model = load_model(run, trust=True)
    assert isinstance(model, DeepLatentModel)
    assert torch.equal(model.decode(z), model.likelihood.params(model.decoder(2 * z)))


ODD = """
import torch
from elbolab.models.vae import VAE

class Odd(VAE):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.steps = [x.item() for x in torch.linspace(0, 1, 3)]
        self.again = self.decoder

    def decode(self, z):
        return super().decode(z) + 0 * self.steps[1]
"""


def test_weights_of_two_names_and_numbers_of_tensors_are_loaded_again(store: Path):
    (store / "odd.py").write_text(ODD)
    weights = load_model(train_model("odd.py:Odd", config("odd.py:Odd"))).state_dict()
    assert torch.equal(weights["again.0.weight"], weights["decoder.0.weight"])


@pytest.mark.parametrize("kind", ["object", "torch.Tensor", "dict[str, Base]"])
def test_a_field_that_no_flag_takes_is_told(store: Path, kind: str):
    (store / "odd.py").write_text(
        "import torch\nfrom elbolab.models.vae import VAE, VAEConfig\nclass Base: ...\n"
        "class OddConfig(VAEConfig, arbitrary_types_allowed=True):\n"
        f"    thing: {kind} = None\n    '''A thing.'''\nclass Odd(VAE):\n    Config = OddConfig\n"
    )
    with pytest.raises(UserError, match=r"^OddConfig.* no flag takes.*; take int, float, bool, str"):
        cli(["train", "odd.py:Odd"], prog_name="elbolab", standalone_mode=False)
