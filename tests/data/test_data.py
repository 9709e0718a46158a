"""Datasets: stratified, reproducible, bound to their content, refused with one clear line."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from elbolab.config.schema import Config, EvaluateConfig, default_data_dir
from elbolab.data.readers import DATASETS, Arrays
from elbolab.data.splits import load_data, stratified_order
from elbolab.experiment import loading, train
from elbolab.experiment.evaluate import evaluate_run
from elbolab.models import MODELS
from elbolab.support.errors import UserError
from elbolab.testing.datasets import DatasetTests


class TestDatasets(DatasetTests):
    @pytest.fixture(params=DATASETS)
    def name(self, request: pytest.FixtureRequest) -> str:
        folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}.get(request.param)
        if folder and not os.path.isfile(default_data_dir() / folder / "raw" / "train-images-idx3-ubyte"):
            pytest.skip(f"the files of {request.param} are not in {default_data_dir()}")
        return request.param

    @pytest.fixture
    def reader(self, name: str) -> Callable[[Path], Arrays]:
        return DATASETS[name]

    @pytest.fixture
    def folder(self, name: str, tmp_path: Path) -> Path:
        if name != "npz":
            return default_data_dir()
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "own.npz", images=rng.integers(0, 256, (90, 9, 7, 3), np.uint8), labels=np.arange(90) % 4)
        return tmp_path / "own.npz"


def test_mnist5k_has_the_declared_split_and_every_digit_in_its_proportion():
    data = load_data("mnist5k", Path())
    for split, each in (("train", 400), ("val", 50), ("test", 50)):
        assert torch.bincount(data.splits[split].labels).tolist() == [each] * 10
    index = torch.cat([split.index for split in data.splits.values()])
    assert index.sort().values.tolist() == list(range(5000))
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255


@pytest.mark.parametrize("seed", range(3))
def test_every_slice_of_a_stratified_order_is_stratified(seed: int):
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    np.random.default_rng(seed).shuffle(labels)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(1000))
    for start, stop in ((0, 10), (100, 400), (333, 777)):
        counts = np.bincount(labels[order[start:stop]], minlength=3)
        assert np.abs(counts - (stop - start) * np.array([0.6, 0.3, 0.1])).max() <= 1.5


def test_the_digest_sees_the_last_pixel_of_the_last_image(tmp_path: Path):
    images, labels = np.full((30, 8, 8), 255, np.uint8), np.arange(30) % 3
    digests = set()
    for value in (254, 255):
        images[-1, -1, -1] = value
        np.savez(tmp_path / "own.npz", images=images, labels=labels)
        digests.add(load_data(f"npz:{tmp_path / 'own.npz'}", Path()).spec.digest)
    assert len(digests) == 2


def test_batches_carry_pixels_labels_and_indices_of_the_same_images():
    data = load_data("mnist5k", Path(), train_size=50, val_size=10, test_size=10)
    seen = list(data.train.batches(16, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in seen] == [16, 16, 16, 2]
    index = torch.cat([batch.index for batch in seen])
    assert sorted(index.tolist()) == sorted(data.train.index.tolist())
    assert index.tolist() != data.train.index.tolist()
    whole = load_data("mnist5k", Path(), train_size=4000)
    images = {
        int(i): image for split in whole.splits.values() for i, image in zip(split.index, split.images, strict=True)
    }
    for batch in seen:
        for x, i in zip(batch.x, batch.index, strict=True):
            assert torch.equal((x * 255).round().byte(), images[int(i)])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 4001}, r"train_size=4001 must be at most 4000"),
        ({"val_size": 4500}, r"val_size=4500 must be less than 4500"),
        ({"test_size": 5000}, r"test_size=5000 must be less than 5000"),
    ],
)
def test_sizes_that_the_data_cannot_give_are_refused(sizes: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        load_data("mnist5k", Path(), **sizes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["mnist6k", "npz", "mnist:somewhere"])
def test_a_dataset_that_does_not_exist_names_those_that_do(name: str):
    with pytest.raises(
        UserError,
        match=r"does not exist.*; there are: mnist5k, mnist, fashion_mnist, kmnist, and npz:PATH, npy:PATH",
    ):
        load_data(name, Path())


GOOD: dict[str, Any] = {"images": np.full((20, 8, 8), 255, np.uint8), "labels": np.arange(20) % 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": np.full((20, 8, 8), -0.5)},
            r"dtype float64 and go from -0\.5 to -0\.5; they must go from 0 to 255",
        ),
        (
            {"images": np.full((20, 8, 8), np.nan)},
            r"go from nan to nan; they must go from 0 to 255, or as floats from 0",
        ),
        ({"images": np.full((20, 8, 8), 256)}, r"dtype int64 and go from 256 to 256; they must go from 0 to 255"),
        ({"images": np.full((20, 8, 8), 1j)}, "dtype complex128; they must be numbers"),
        ({"images": np.zeros((20, 64), np.uint8)}, r"shape \(20, 64\); allowed"),
        ({"images": np.zeros((20, 8, 8, 2), np.uint8)}, r"shape \(20, 8, 8, 2\); allowed"),
        ({"labels": np.arange(19)}, r"shape \(19,\); they must be integers or texts of shape \(20,\)"),
        ({"labels": np.ones(20)}, "dtype float64"),
        ({"labels": np.full(20, -1)}, "labels are from -1 to -1; they must be from 0 to less than 20"),
        ({"images": np.array([object()] * 20)}, "images has dtype object, and these are numbers only"),
        ({"labels": np.arange(20).astype(object)}, r"labels has dtype object, .*; save it with numpy.savez"),
        ({"labels": np.zeros((20, 3), np.int64)}, r"shape \(20, 3\); they must be integers or texts"),
        ({"white": 0}, "white=0; it must be one integer from 1 to 255"),
        ({"white": 254}, "white=254, but a pixel of 255"),
        ({"white": np.arange(3)}, r"white=\[0, 1, 2\]; it must be one integer"),
        ({"white": 1.0}, r"white=1\.0; it must be one integer"),
    ],
)
def test_arrays_that_are_wrong_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path):
    arrays = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_data(f"npz:{tmp_path / 'own.npz'}", Path())


def save(path: Path, images: np.ndarray, **more: Any) -> str:
    np.savez(path, images=images, labels=np.arange(len(images)) % 2, **more)
    return f"npz:{path}"


@pytest.mark.parametrize("white", [0, 1, 2, 15, 16, 31, 63, 100, 127])
def test_pixels_of_another_unit_are_refused_until_it_is_said(white: int, tmp_path: Path):
    """Zero and one, the sixteen greys of scikit-learn's digits, percent, seven bits: none of them is 255 for white."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, white + 1, (40, 8, 8), np.uint8)
    images[0, 0, 0] = white
    with pytest.raises(UserError, match=rf"no pixel above {white}, but 255 is white; scale the images .* white=255"):
        load_data(save(tmp_path / "own.npz", images), Path())
    if white:
        said = load_data(save(tmp_path / "own.npz", images, white=white), Path())
        scaled = load_data(save(tmp_path / "own.npz", (images * (255 / white)).round().astype(np.uint8)), Path())
        assert said.train.images.max() == 255
        assert said.spec == scaled.spec
    dark = load_data(save(tmp_path / "own.npz", images, white=255), Path())
    assert torch.equal(dark.train.images[:, 0], torch.from_numpy(images[dark.train.index]))


def test_pixels_that_are_rather_dark_are_taken_as_they_are(tmp_path: Path):
    images = np.full((40, 8, 8), 128, np.uint8)
    said, unsaid = (load_data(save(tmp_path / "own.npz", images, **white), Path()) for white in ({"white": 255}, {}))
    assert said.spec == unsaid.spec
    assert unsaid.train.images.unique().tolist() == [128]


@pytest.mark.parametrize("part", ["images", "test"])
def test_a_dataset_of_any_reader_has_255_as_white(part: str, monkeypatch: pytest.MonkeyPatch):
    bright, dark = np.full((40, 1, 8, 8), 255, np.uint8), np.ones((40, 1, 8, 8), np.uint8)
    labels = np.arange(40) % 2
    images, test = (dark, bright) if part == "images" else (bright, dark)
    monkeypatch.setitem(DATASETS, "own", lambda _: Arrays(images, labels, (test, labels), 5, 5))
    with pytest.raises(UserError, match="own has no pixel above 1, but 255 is white"):
        load_data("own", Path())


def test_what_is_no_npz_file_is_named_with_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"nothing\.npz cannot be read: there is no such file; no npz .* {tmp_path}$"):
        load_data("npz:nothing.npz", Path())
    save(tmp_path / "shapes.npz", GOOD["images"])
    with pytest.raises(UserError, match=r"shape\.npz cannot be read: .*; there are: npz:shapes\.npz$"):
        load_data("npz:shape.npz", Path())
    np.save("own.npy", GOOD["images"])
    with pytest.raises(UserError, match=r"it is an npy file, which has one array; save it with numpy\.savez"):
        load_data("npz:own.npy", Path())
    with pytest.raises(UserError, match=r"cannot be read as an npz file of plain arrays: .*Is a directory"):
        load_data(f"npz:{tmp_path}", Path())


def test_a_text_is_no_npz_file(tmp_path: Path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"it is no npz file; save it with numpy\.savez"):
        load_data(f"npz:{tmp_path / 'text.npz'}", Path())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "own.npz", GOOD["images"])
    assert len(load_data("npz:~/own.npz", Path()).train) == 16
    with pytest.raises(UserError, match="there is no such file"):
        load_data("npz:~nobody-here/own.npz", Path())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("shapes.npz", "npz:shapes.npz"),
        ("npz=shapes.npz", "npz:shapes.npz"),
        ("NPZ:shapes.npz", "npz:shapes.npz"),
        ("~/shapes.npz", "npz:~/shapes.npz"),
        ("data/shapes.NPZ", "npz:data/shapes.NPZ"),
        ("MNIST", "mnist"),
        ("mnist5000", "mnist5k"),
        ("fashion-mnist", "fashion_mnist"),
        ("FashionMNIST", "fashion_mnist"),
    ],
)
def test_a_dataset_that_does_not_exist_is_guessed(given: str, meant: str):
    with pytest.raises(UserError, match=rf"dataset='{given}' does not exist; did you mean {meant}\?; there are"):
        load_data(given, Path())


def test_a_download_that_fails_names_folder_files_and_the_embedded_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torchvision.datasets.mnist

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    with pytest.raises(UserError) as error:
        load_data("kmnist", tmp_path)
    for part in (str(tmp_path / "KMNIST" / "raw"), "train-images-idx3-ubyte", "dataset=mnist5k", "ELBOLAB_DATA"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_mnist_is_the_original_with_its_own_test_set():
    if not (default_data_dir() / "MNIST" / "raw" / "t10k-images-idx3-ubyte").exists():
        pytest.skip("the MNIST files are not in $ELBOLAB_DATA" if "ELBOLAB_DATA" in os.environ else "no ELBOLAB_DATA")
    data = load_data("mnist", default_data_dir(), train_size=20000)
    assert [len(split) for split in data.splits.values()] == [20000, 5000, 10000]
    assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test.index.min() == 60000


def test_a_run_finds_its_data_in_this_machine_s_folder_where_its_own_is_not_there(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8), np.arange(60) % 3
    monkeypatch.setitem(DATASETS, "own", lambda folder: Arrays(np.load(folder / "own.npy"), labels, None, 10, 10))
    there, here = store / "there", store / "here"
    there.mkdir()
    np.save(there / "own.npy", images)
    fields = {"dataset": "own", "data_dir": there, "latent_dim": 2, "epochs": 1}
    run = train.train_model("ppca", MODELS["ppca"].Config.parse(fields))
    there.rename(here)
    monkeypatch.setenv("ELBOLAB_DATA", str(here))
    model, data = loading.load_run(run, "cpu")
    assert data.spec == model.spec
    np.save(here / "own.npy", 255 - images)
    with pytest.raises(UserError, match="was trained on data with digest"):
        loading.load_run(run, "cpu")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is taken for settled as soon as it is read, as after some seconds."""
    monkeypatch.setattr(loading, "LATE_SECONDS", -60)


def overwritten(path: Path, images: np.ndarray) -> None:
    save(path, images)


def replaced(path: Path, images: np.ndarray) -> None:
    save(path.with_name("new.npz"), images)
    path.with_name("new.npz").rename(path)


def overwritten_with_its_old_time(path: Path, images: np.ndarray) -> None:
    before = path.stat()
    time.sleep(0.01)
    save(path, images)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def linked_elsewhere(path: Path, images: np.ndarray) -> None:
    save(path.with_name("new.npz"), images)
    path.unlink()
    path.symlink_to(path.with_name("new.npz"))


@pytest.mark.parametrize("change", [overwritten, replaced, overwritten_with_its_old_time, linked_elsewhere])
def test_data_are_read_again_once_their_file_has_changed(
    change: Callable[[Path, np.ndarray], None], tmp_path: Path, settled: None
):
    images = np.full((40, 8, 8), 255, np.uint8)
    config = Config.parse({"dataset": save(tmp_path / "own.npz", images)})
    first = loading.load_for(config)
    assert loading.load_for(config) is first
    images[-1, -1, -1] = 0
    time.sleep(0.01)
    change(tmp_path / "own.npz", images)
    again = loading.load_for(config)
    assert again.spec.digest == load_data(config.dataset, Path()).spec.digest != first.spec.digest
    assert loading.load_for(config) is again
    assert loading.load_for(config.model_copy(update={"split_seed": 1})).spec.digest != again.spec.digest
    (tmp_path / "own.npz").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        loading.load_for(config)


def test_data_of_a_file_that_has_just_changed_are_read_again(tmp_path: Path):
    """What changes at the same tick of a file system's clock leaves the same time."""
    config = Config.parse({"dataset": save(tmp_path / "own.npz", GOOD["images"])})
    assert loading.load_for(config) is not loading.load_for(config)


def test_the_same_name_in_another_folder_is_another_file(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
):
    config, digests = Config.parse({"dataset": "npz:own.npz"}), set()
    for name, pixel in (("one", 255), ("other", 200)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        save(Path("own.npz"), np.full((40, 8, 8), pixel, np.uint8))
        digests.add(loading.load_for(config).spec.digest)
    assert len(digests) == 2


@pytest.mark.parametrize("is_named", [True, False])
def test_a_dataset_that_names_no_file_is_always_read(
    is_named: bool, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
):
    file, labels = tmp_path / "own.npy", np.arange(40) % 2
    np.save(file, np.full((40, 1, 8, 8), 255, np.uint8))
    files = (file,) if is_named else ()
    monkeypatch.setitem(DATASETS, "own", lambda _: Arrays(np.load(file), labels, None, 5, 5, files=files))
    config = Config.parse({"dataset": "own"})
    first = loading.load_for(config)
    assert (loading.load_for(config) is first) == is_named
    np.save(file, np.full((40, 1, 8, 8), 200, np.uint8))
    assert loading.load_for(config).train.images.unique().tolist() == [200]


def test_a_training_after_the_file_has_changed_is_of_the_new_data(store: Path):
    """In one process, as a notebook's: trained, tagged and evaluated by what the file holds."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    config = MODELS["ppca"].Config.parse({"dataset": save(store / "own.npz", images), "latent_dim": 2})
    first = train.train_model("ppca", config)
    save(store / "own.npz", images // 2 + 100)
    second = train.train_model("ppca", config)
    digests = [mlflow.get_run(run).data.tags["data.digest"] for run in (first, second)]
    assert digests[0] != digests[1] == load_data(config.dataset, Path()).spec.digest
    evaluate_run(second, EvaluateConfig(images=2, samples=2, simulated=0, budget=1))
    with pytest.raises(UserError, match=f"was trained on data with digest {digests[0]}, but .* now has the digest"):
        evaluate_run(first, EvaluateConfig(images=2, samples=2, simulated=0, budget=1))


def test_binarised_pixels_are_white_as_often_as_they_are_grey():
    sizes = 4000, 500, 500
    grey, half, once, again, other = (
        load_data("mnist5k", Path(), *sizes, split_seed=seed, binarise=how)
        for how, seed in (("no", 0), ("half", 0), ("once", 0), ("once", 0), ("once", 1))
    )
    for split, images in grey.splits.items():
        assert torch.equal(half.splits[split].images, (images.images > 127).byte() * 255)
        drawn = once.splits[split].images
        assert drawn.unique().tolist() == [0, 255]
        assert torch.equal(drawn, again.splits[split].images)
        # Black stays black, and white white.
        assert torch.equal(drawn[images.images % 255 == 0], images.images[images.images % 255 == 0])
    pixels, drawn = grey.train.images.double() / 255, once.train.images.double() / 255
    error = ((pixels * (1 - pixels)).sum() / pixels.numel() ** 2).sqrt()
    assert abs(drawn.mean() - pixels.mean()) < 4 * error
    assert len({data.spec.digest for data in (grey, half, once, other)}) == 4
