"""Images that memory does not hold: the same batches and digests from a file, made once, whole or not at all."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from elbolab.config.schema import EvaluateConfig
from elbolab.data import memory_map
from elbolab.data.splits import Data, load_data
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.support.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
LABELS = np.arange(60) % 3


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Shards of a few images, the last of them not full.
    monkeypatch.setattr(memory_map, "SHARD_BYTES", 7 * 8 * 8 * 3)
    monkeypatch.setattr("elbolab.data.array_files.SHARD_BYTES", 7 * 8 * 8 * 3)
    return tmp_path


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of little memory, half of which holds no more than 20 of the images in colour."""
    memory_is(monkeypatch, 2 * 20 * 8 * 8 * 3)


def memory_is(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(memory_map, "memory", lambda: size)
    monkeypatch.setattr("elbolab.data.array_files.memory", lambda: size)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> str:
    save("own.npz", **arrays)
    return "npz:own.npz"


def npy(images: np.ndarray) -> str:
    np.save("own.npy", images)
    return "npy:own.npy"


def folder(images: list[np.ndarray]) -> str:
    for row, image in enumerate(images):
        into = Path("own", ("train", "test")[row % 4 == 3], str(row % 3))
        into.mkdir(parents=True, exist_ok=True)
        (into / f"{row:02}.png").write_bytes(png(image))
    return "folder:own"


def parquet(images: np.ndarray) -> str:
    Path("own").mkdir()
    for split, rows in (("train", range(40)), ("test", range(40, 60))):
        pictures = [{"bytes": png(images[row]), "path": None} for row in rows]
        pq.write_table(pa.table({"image": pictures, "label": LABELS[rows].tolist()}), f"own/{split}.parquet")
    return "parquet:own"


SPLITS = {
    f"{split}_{kind}": every[rows]
    for split, rows in (("train", slice(40)), ("val", slice(40, 50)), ("test", slice(50, 60)))
    for kind, every in (("images", RGB), ("labels", LABELS))
}
LAYOUTS: dict[str, Callable[[], str]] = {
    "npz": lambda: npz(images=RGB, labels=LABELS),
    "compressed": lambda: npz(np.savez_compressed, images=RGB, labels=LABELS),
    "splits": lambda: npz(np.savez, **SPLITS),
    "floats": lambda: npz(images=(RGB / 255).astype(np.float32).transpose(0, 3, 1, 2), labels=LABELS),
    "white": lambda: npz(images=RGB // 16, labels=LABELS, white=15),
    "dark": lambda: npz(images=RGB / 2550, labels=LABELS),
    "npy": lambda: npy(RGB),
    "floats of npy": lambda: npy(RGB.astype(np.float64)),
    "folder": lambda: folder(list(RGB)),
    "grey then colours": lambda: folder([*RGB[:30, :, :, 0], *RGB[30:]]),
    "parquet": lambda: parquet(RGB),
}


def files() -> set[str]:
    return {file.name for file in Path("cache", "mapped").glob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_from_a_file_are_those_of_memory(
    layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    dataset = LAYOUTS[layout]()
    inside = load_data(dataset, Path("cache"))
    assert not Path("cache").exists()
    memory_is(monkeypatch, 2 * 20 * 8 * 8 * 3)
    mapped = load_data(dataset, Path("cache"))
    assert "GB of images, more than half of" in capsys.readouterr().err
    assert (mapped.spec, mapped.names, mapped.files) == (inside.spec, inside.names, inside.files)
    for split in inside.splits:
        assert torch.equal(mapped.splits[split].images, inside.splits[split].images)
        assert torch.equal(mapped.splits[split].index, inside.splits[split].index)
    # One of all images, and one of each split; the next process reads these.
    written = files()
    assert len(written) == 4
    assert all(name.endswith(".npy") for name in written)
    monkeypatch.setattr(memory_map.Store, "allocate", None)
    assert load_data(dataset, Path("cache")).spec == inside.spec
    assert capsys.readouterr().err.count("they are read from") == 1


def test_a_file_that_has_changed_is_read_anew(little: None):
    first = load_data(npz(images=RGB, labels=LABELS), Path("cache"))
    before = Path("own.npz").stat()
    time.sleep(0.01)
    dataset = npz(images=RGB[::-1], labels=LABELS)
    os.utime("own.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load_data(dataset, Path("cache"))
    assert first.spec.digest != second.spec.digest
    Path("own.npz").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        load_data("npz:own.npz", Path("cache"))


def test_other_sizes_and_pixels_are_other_files(little: None, monkeypatch: pytest.MonkeyPatch):
    dataset = npz(images=RGB, labels=LABELS)

    def all_ways() -> list[Data]:
        ways: list[dict[str, Any]] = [{}, {"train_size": 20}, {"split_seed": 1}, {"binarise": "half"}]
        return [load_data(dataset, Path("cache"), **way) for way in ways]

    mapped = all_ways()
    memory_is(monkeypatch, 10**9)
    assert [data.spec for data in mapped] == [data.spec for data in all_ways()]


def test_what_needs_all_images_at_once_is_refused(little: None):
    with pytest.raises(UserError, match=r"binarise=once draws for all images of npz:own\.npz at once"):
        load_data(npz(images=RGB, labels=LABELS), Path("cache"), binarise="once")
    with pytest.raises(UserError, match=r"npz:own\.npz has images in Fortran's order, .*; save it with numpy\.ascont"):
        load_data(npz(images=np.asfortranarray(RGB)), Path("cache"))


def test_what_is_refused_in_memory_is_refused_and_leaves_no_file(little: None):
    for images, message in (
        (RGB // 100, "has no pixel above 2, but 255 is white"),
        (RGB.astype(int) - 1, "go from -1 to 254"),
        (np.where(RGB == 7, np.nan, RGB), "go from nan to nan"),
        (RGB.astype(object), "images has dtype object"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(npz(images=images), Path("cache"))
    Path("own.npz").write_bytes(Path(npz(images=RGB)[4:]).read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"own\.npz cannot be read as an npz file"):
        load_data("npz:own.npz", Path("cache"))
    folder(list(RGB))
    Path("own", "train", "0", "99.png").write_text("hello")
    with pytest.raises(UserError, match=r"1 of 61 pictures cannot be read: train.0.99\.png \(no picture\)"):
        load_data("folder:own", Path("cache"))
    assert files() == set()


def test_what_a_killed_process_left_is_removed_after_a_day(little: None):
    Path("cache", "mapped").mkdir(parents=True)
    for name, age in (("old", 2 * memory_map.ABANDONED_SECONDS), ("new", 60)):
        left = Path("cache", "mapped", f"{name}.part")
        left.touch()
        os.utime(left, (time.time() - age, time.time() - age))
    load_data(npz(images=RGB), Path("cache"))
    assert {name for name in files() if name.endswith(".part")} == {"new.part"}


def test_a_disk_that_is_too_full_is_told_before_the_work(little: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"npz:own\.npz: .*mapped has 0\.0 GB left; .*; name a folder by --data-dir or"):
        load_data(npz(images=RGB), Path("cache"))
    assert files() == set()


def test_the_limit_is_the_container_s_where_it_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_map, "GROUPS", tmp_path)
    machine = memory_map.memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_map.memory() == machine
    (tmp_path / "memory.max").write_text("1000000\n")
    assert (memory_map.memory(), memory_map.most_in_memory()) == (1_000_000, 500_000)


def test_a_model_of_images_in_a_file_is_that_of_images_in_memory(store: Path, monkeypatch: pytest.MonkeyPatch):
    dataset, found = npz(images=RGB, labels=LABELS), []
    for size in (10**9, 2 * 20 * 8 * 8 * 3):
        memory_is(monkeypatch, size)
        fields = {"dataset": dataset, "data_dir": store / "cache", "latent_dim": 2, "epochs": 1, "net": "mlp"}
        run = train_model("vae", MODELS["vae"].Config.parse(fields))
        found.append(evaluate_run(run, EvaluateConfig(images=4, samples=4, simulated=0, budget=1)))
    assert files()
    assert found[0] == found[1]
