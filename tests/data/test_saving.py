"""Images that a program has become a dataset of every command, pixel by pixel, and leave the program as it was."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_studies import carry_out, children, define
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

import elbolab
from elbolab.config.schema import EvaluateConfig
from elbolab.data.splits import Data, load_data
from elbolab.models import MODELS
from elbolab.support.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
LABELS = np.arange(60) % 3
FIRST = torch.from_numpy(RGB).permute(0, 3, 1, 2)


class Pictures(Dataset[Any]):
    """As torchvision's: pictures of Pillow, labels, names of classes that are not in the order of the alphabet."""

    classes = ("zebra", "ant", "cow")

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> Any:
        return Image.fromarray(RGB[row]), int(LABELS[row])


class Noisy(Pictures):
    """Of another image each time, by every global generator that there is."""

    def __getitem__(self, row: int) -> Any:
        return torch.rand(3, 8, 8) * np.random.rand() * random.random(), LABELS[row]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(FIRST, LABELS, strict=True)


WAYS: dict[str, Any] = {
    "dataset of pictures": Pictures(),
    "part of a dataset": Subset(Pictures(), range(60)),
    "stream": Stream(),
    "dataset of tensors": TensorDataset(FIRST.float() / 255, torch.from_numpy(LABELS)),
    "arrays": (RGB, LABELS),
    "tensors from 0 to 1": (FIRST.double() / 255, torch.from_numpy(LABELS)),
    "floats from 0 to 255": (FIRST.float(), LABELS.tolist()),
    "half floats": (FIRST.bfloat16(), LABELS),
    "list": list(zip(RGB, LABELS, strict=True)),
}


def load(dataset: str) -> Data:
    return load_data(dataset, Path())


@pytest.mark.parametrize("way", WAYS)
def test_the_pixels_and_labels_are_those_that_were_given(way: str, tmp_path: Path):
    name = elbolab.save_dataset(WAYS[way], tmp_path / "new" / "own")
    assert name == f"npz:{tmp_path / 'new' / 'own.npz'}"
    data = load(name)
    for split in data.splits.values():
        assert torch.equal(split.images, FIRST[split.index])
        assert torch.equal(split.labels, torch.from_numpy(LABELS)[split.index])
    # Labels stay as they were numbered, whatever their names are.
    assert data.names == (Pictures.classes if "of pictures" in way or "part" in way else ())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["own.npz"]


def test_every_way_is_the_same_dataset(tmp_path: Path):
    digests = {
        load(elbolab.save_dataset(data, tmp_path / f"{row}")).spec.digest for row, data in enumerate(WAYS.values())
    }
    assert len(digests) == 1


def test_images_alone_have_no_labels_and_grey_ones_one_channel(tmp_path: Path):
    for images in (RGB[..., 0], FIRST[:, :1], list(RGB[..., 0]), TensorDataset(FIRST[:, :1])):
        name = elbolab.save_dataset(images, tmp_path / "own.npz")
        assert np.load(name[4:]).files == ["images"]
        assert (load(name).spec.classes, load(name).spec.shape) == (1, (1, 8, 8))


def test_splits_of_a_dict_stay_apart(tmp_path: Path):
    train, val, test = random_split(Pictures(), [40, 10, 10], torch.Generator().manual_seed(0))
    data = load(elbolab.save_dataset({"train": train, "val": val, "test": test}, tmp_path / "own.npz"))
    assert [len(split) for split in data.splits.values()] == [40, 10, 10]
    assert data.names == Pictures.classes
    assert sorted(bytes(image.numpy()) for image in data.test.images) == sorted(
        bytes(FIRST[row].numpy()) for row in test.indices
    )
    # Two arrays by name are no pair of images and labels.
    data = load(
        elbolab.save_dataset({"train": (RGB[:50], LABELS[:50]), "test": (RGB[50:], LABELS[50:])}, tmp_path / "two")
    )
    assert [len(split) for split in data.splits.values()] == [45, 5, 10]


def test_names_of_classes_and_dark_images_survive(tmp_path: Path):
    name = elbolab.save_dataset((RGB / 2550, np.array(["eel", "cat", "dog"])[LABELS]), tmp_path / "own")
    data = load(name)
    assert data.names == ("cat", "dog", "eel")
    assert {data.names[label] for label in data.train.labels[data.train.index % 3 == 0].tolist()} == {"eel"}
    assert data.train.images.max() == 26


def test_a_dataset_that_draws_leaves_the_caller_s_random_numbers_and_settings(tmp_path: Path):
    def draws() -> tuple[float, float, float]:
        return torch.rand(1, dtype=torch.float32).item(), np.random.rand(), random.random()

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seed()
    expected = draws()
    seed()
    torch.set_default_dtype(torch.float64)
    try:
        elbolab.save_dataset(Noisy(), tmp_path / "own")
        assert torch.get_default_dtype() == torch.float64
        assert draws() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_images_that_memory_does_not_hold_twice_are_put_together_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = load(elbolab.save_dataset((RGB, LABELS), tmp_path / "own")).spec
    monkeypatch.setattr("elbolab.data.memory_map.memory", lambda: RGB.nbytes)
    name = elbolab.save_dataset((RGB, LABELS), tmp_path / "own")
    monkeypatch.undo()
    assert load(name).spec == expected
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"data is a int; it must be a torch Dataset, a pair \(images, labels\), images, or a dict"),
        ({"validation": RGB}, "data has the splits validation; it must have train, and may have val and test"),
        ({}, "data has the splits none; it must have train"),
        (
            (RGB, LABELS[:59]),
            r"data labels have dtype int64 and shape \(59,\); they must be integers or texts of shape",
        ),
        ((RGB, LABELS - 1), "data labels are from -1 to 1; they must be from 0"),
        (
            FIRST.float() / 128 - 1,
            r"data images have dtype float32 and go from -1\.0 to .*; \(x \+ 1\) / 2 of these|from -1",
        ),
        (RGB // 100, "data has no pixel above 2, but 255 is white; scale the images to 0 to 255$"),
        (FIRST.flatten(1), r"data images have shape \(60, 192\); allowed"),
        ([RGB[0], RGB[0, :6]], r"data item 1 has an image of shape \(6, 8, 3\), and item 0 of \(8, 8, 3\); bring all"),
        ([{"image": RGB[0]}], r"data item 0 is \(dict\); it must be an image as tensor, array or picture"),
        (
            [(RGB[0], 1), (RGB[0],)],
            "data has 2 images and 1 labels; give images, and labels to all or none",
        ),
        ([], "data has 0 images and 0 labels"),
        ([Image.fromarray(RGB[0, ..., 0].astype(np.int32))], "data item 0 cannot be read: pixels of 32 bits"),
        (DataLoader(Pictures()), r"data is a DataLoader, which gives batches; hand over its \.dataset"),
        ({"train": (RGB, LABELS), "test": RGB}, "data has no labels of its test images, but of others"),
        (RGB[:2], "data has 2 images; it must have at least 3, one for each split"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_what_was_there(data: Any, message: str, tmp_path: Path):
    (tmp_path / "own.npz").write_text("before")
    with pytest.raises(UserError, match=message) as error:
        elbolab.save_dataset(data, tmp_path / "own.npz")
    assert "\n" not in str(error.value)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"own\.npz cannot be written: .*; name a file in a folder that can be"):
        elbolab.save_dataset(RGB, tmp_path / "file" / "own.npz")


def test_it_is_trained_evaluated_and_searched_on(store: Path):
    name = elbolab.save_dataset(Pictures(), store / "own")
    fields = {"dataset": name, "latent_dim": 2, "epochs": 1, "net": "mlp"}
    run = elbolab.train_model("vae", MODELS["vae"].Config.parse(fields))
    results = elbolab.evaluate_run(run, EvaluateConfig(images=4, samples=4, simulated=0, budget=1))
    assert np.isfinite(results["test/log_px"])
    code = f"""
from elbolab import Study
STUDY = Study(model="vae", base={fields!r}, search=["lr"], metrics=["val/elbo"], trials=2)
"""
    assert len(children(carry_out(define(store, "own", code)))) == 2
