"""A user's own images in the layouts that their makers write: what is read, what is kept, what is refused."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from elbolab.data.own_files import OWN
from elbolab.data.splits import Data, load_data, read
from elbolab.support.errors import UserError
from elbolab.support.paths import KINDS as KINDS_OF_PATHS
from elbolab.support.paths import public

COUNT, SIDE = 60, 12
RGB = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
# Of a picture as PNG nothing is lost.
THREE = np.arange(COUNT) % 3


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(dataset: str, **how: Any) -> Data:
    return load_data(dataset, Path(), **how)


def pixels(data: Data) -> np.ndarray:
    """All images of a dataset by their index, uint8 (N, H, W, C)."""
    splits = data.splits.values()
    index = torch.cat([split.index for split in splits])
    return torch.cat([split.images for split in splits])[index.argsort()].permute(0, 2, 3, 1).numpy()


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_medmnist_keeps_its_own_splits():
    """Labels (N, 1), and a class that only the test images have."""
    cut = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays: dict[str, Any] = {f"{split}_images": RGB[part] for split, part in cut.items()}
    labels = THREE.copy()
    labels[55] = 3
    arrays |= {f"{split}_labels": labels[part][:, None] for split, part in cut.items()}
    np.savez("med.npz", **arrays)
    data = load("npz:med.npz")
    assert [len(split) for split in data.splits.values()] == [40, 10, 10]
    assert (data.spec.shape, data.spec.classes) == ((3, SIDE, SIDE), 4)
    assert set(data.train.index.tolist()) == set(range(40))
    # What is tested on comes behind what is trained on, and then what is validated on.
    assert np.array_equal(pixels(data), np.concatenate([RGB[:40], RGB[50:], RGB[40:50]]))
    fewer = load("npz:med.npz", train_size=20, val_size=5, test_size=4)
    assert [len(split) for split in fewer.splits.values()] == [20, 5, 4]
    assert set(fewer.val.index.tolist()) <= set(data.val.index.tolist())
    for split, most in (("val", 10), ("test", 10), ("train", 40)):
        with pytest.raises(UserError, match=f"{split}_size={most + 1} must be at most {most}, the images"):
            load("npz:med.npz", **{f"{split}_size": most + 1})


def test_keras_has_a_test_set_and_no_validation_set():
    np.savez("keras.npz", x_train=RGB[:50], y_train=THREE[:50], x_test=RGB[50:], y_test=THREE[50:], info=np.arange(2))
    data = load("npz:keras.npz")
    assert [len(split) for split in data.splits.values()] == [45, 5, 10]
    assert np.array_equal(pixels(data), RGB)


def test_what_is_not_used_of_a_file_is_named(capsys: pytest.CaptureFixture[str]):
    np.savez("own.npz", images=RGB, label=THREE, names=np.array(["a"]))
    assert load("npz:own.npz").spec.classes == 1
    assert capsys.readouterr().err == "elbolab: npz:own.npz: ignored: label, names\n"


def test_channels_first_and_last_are_the_same_images():
    np.savez("last.npz", images=RGB)
    np.savez("first.npz", images=RGB.transpose(0, 3, 1, 2))
    assert load("npz:last.npz").spec == load("npz:first.npz").spec


@pytest.mark.parametrize("scale", [1, 255])
def test_floats_are_rounded_to_whole_numbers(scale: float):
    np.savez("own.npz", images=(RGB / 255 * scale).astype(np.float32))
    assert np.array_equal(pixels(load("npz:own.npz")), RGB)
    # A dark picture in [0, 1] is a dark picture, since what white is is known.
    if scale == 1:
        np.savez("dark.npz", images=RGB / 2550)
        assert pixels(load("npz:dark.npz")).max() == 26


def test_an_npy_file_is_images_without_labels():
    np.save("own.npy", RGB[..., 0])
    data = load("npy:own.npy")
    assert data.spec.classes == 1
    assert np.array_equal(pixels(data)[..., 0], RGB[..., 0])
    with pytest.raises(UserError, match=r"npz:own\.npy cannot be read .*: it is an npy file, which has one array"):
        load("npz:own.npy")


def test_texts_are_names_of_classes():
    np.savez("own.npz", images=RGB, labels=np.array(["eel", "cat", "dog"])[THREE])
    data = load("npz:own.npz")
    assert data.names == ("cat", "dog", "eel")
    assert {data.names[label] for label in data.train.labels[data.train.index % 3 == 0].tolist()} == {"eel"}


def test_a_folder_of_folders_is_a_class_a_folder(here: Path):
    for number, name in enumerate(("ant", "bee", "cow")):
        (here / "own" / name / "more").mkdir(parents=True)
        for row in np.flatnonzero(number == THREE):
            # In a folder of a folder too, as ImageFolder finds them.
            into = here / "own" / name / ("more" if row % 2 else "")
            (into / f"{row:02}.png").write_bytes(png(RGB[row]))
    (here / "own" / "readme.txt").write_text("not a picture")
    data = load("folder:own")
    assert data.names == ("ant", "bee", "cow")
    assert (len(data.train), data.spec.classes, data.spec.shape) == (48, 3, (3, SIDE, SIDE))
    assert sorted(map(bytes, pixels(data))) == sorted(map(bytes, RGB))
    assert load("folder:own", image_size=8).spec.shape == (3, 8, 8)
    (here / "own" / "loose.png").write_bytes(png(RGB[0]))
    with pytest.raises(UserError, match="folder:own has 1 pictures beside folders of pictures"):
        load("folder:own")


def test_folders_of_splits_are_splits_of_classes(here: Path):
    cut = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    for split, rows in cut.items():
        for row in range(60)[rows]:
            folder = here / "own" / split / ("even", "odd")[row % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row:02}.png").write_bytes(png(RGB[row]))
    data = load("folder:own")
    assert [len(split) for split in data.splits.values()] == [40, 10, 10]
    assert data.names == ("even", "odd")
    assert set(map(bytes, pixels(data)[50:])) == set(map(bytes, RGB[40:50]))


def test_links_are_followed_once_and_hidden_files_left_out(here: Path):
    for name in ("own/a", "elsewhere", "own/.ipynb_checkpoints"):
        (here / name).mkdir(parents=True)
        for row in range(5):
            (here / name / f"{row}.png").write_bytes(png(RGB[row]))
    (here / "own" / "a" / ".thumb.png").write_bytes(png(RGB[9]))
    (here / "own" / "b").symlink_to(here / "elsewhere")
    (here / "own" / "b" / "back").symlink_to(here / "own")
    (here / "own" / "a" / "gone.png").symlink_to(here / "nothing.png")
    stored = read("folder:own", Path())
    assert stored.names == ("a", "b")
    assert len(stored.images) == 10


@pytest.mark.parametrize("kind", ["float", "int32"])
def test_pixels_whose_white_nobody_says_are_refused(kind: str, here: Path):
    (here / "own").mkdir()
    for row in range(4):
        Image.fromarray(GREY.astype(np.float32 if kind == "float" else np.int32)).save(here / "own" / f"{row}.tif")
    with pytest.raises(UserError, match=r"4 of 4 pictures cannot be read: 0\.tif \(pixels of 32 bits, of which nobody"):
        load("folder:own")


def test_masks_of_zero_and_one_are_no_pictures(here: Path):
    (here / "own").mkdir()
    for row in range(4):
        Image.fromarray((GREY > 127).astype(np.uint8)).save(here / "own" / f"{row}.png")
    with pytest.raises(
        UserError, match=r"folder:own has no pixel above 1, but 255 is white; scale the images to 0 to 255$"
    ):
        load("folder:own")


def test_a_picture_that_is_added_is_seen(here: Path):
    """The files that are looked at to see whether anything has changed are the pictures and their folders."""
    (here / "own").mkdir()
    for row in range(10):
        (here / "own" / f"{row}.png").write_bytes(png(RGB[row]))
    stored = read("folder:own", Path())
    assert here / "own" in {here / file for file in stored.files}
    assert len(stored.files) == 11


GREY = RGB[0, ..., 0]
KINDS: dict[str, tuple[Image.Image, np.ndarray | None]] = {
    "grey": (Image.fromarray(GREY), GREY),
    "sixteen bits": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
    "black and white": (Image.fromarray(GREY > 127), np.where(GREY > 127, 255, 0)),
    "grey and alpha": (Image.fromarray(GREY).convert("LA"), GREY),
    "colours": (Image.fromarray(RGB[0]), RGB[0]),
    "colours and alpha": (Image.fromarray(RGB[0]).convert("RGBA"), RGB[0]),
    "palette": (Image.fromarray(RGB[0]).quantize(256), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_eight_bits_of_grey_or_colours(kind: str, here: Path):
    picture, expected = KINDS[kind]
    (here / "own").mkdir()
    for row in range(3):
        picture.save(here / "own" / f"{row}.png")
    found = read("folder:own", Path()).images
    expected = np.asarray(picture.convert("RGB")) if expected is None else expected
    expected = expected[..., None] if expected.ndim == 2 else expected
    assert np.array_equal(found[0].transpose(1, 2, 0), expected)
    # Beside a picture in colours a grey one has three equal channels.
    Image.fromarray(RGB[1]).save(here / "own" / "z.png")
    assert read("folder:own", Path()).images.shape == (4, 3, SIDE, SIDE)


def test_a_photograph_is_the_way_up_that_it_says(here: Path):
    (here / "own").mkdir()
    for row in range(3):
        picture = Image.fromarray(RGB[row, :, :8])
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(here / "own" / f"{row}.png", exif=exif)
    assert read("folder:own", Path()).images.shape == (3, 3, 8, SIDE)


def test_pictures_that_cannot_be_read_are_named(here: Path):
    (here / "own").mkdir()
    for row in range(5):
        (here / "own" / f"{row}.png").write_bytes(png(RGB[row]))
    (here / "own" / "note.png").write_text("hello")
    (here / "own" / "torn.png").write_bytes(png(RGB[0])[:200])
    with pytest.raises(
        UserError, match=r"folder:own: 2 of 7 pictures cannot be read: note\.png \(no picture\), torn\.png"
    ):
        load("folder:own")


def test_pictures_of_several_sizes_need_one(here: Path):
    (here / "own").mkdir()
    for row in range(4):
        (here / "own" / f"{row}.png").write_bytes(png(RGB[row, : 6 + row]))
    with pytest.raises(UserError, match="pictures of 4 sizes, from 6x12 to 9x12; --image-size 32"):
        load("folder:own")
    assert load("folder:own", image_size=16).spec.shape == (3, 16, 16)


def test_what_is_no_folder_of_pictures_is_refused(here: Path):
    with pytest.raises(UserError, match="folder:none cannot be read: there is no such folder"):
        load("folder:none")
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=r"folder:empty has no pictures; it may have files that end with \.bmp, \.gif"):
        load("folder:empty")


def test_a_size_is_not_for_arrays():
    np.savez("own.npz", images=RGB)
    for dataset in ("npz:own.npz", "mnist5k"):
        with pytest.raises(UserError, match=f"image_size=8 is for folder: and parquet:, and {dataset} is an array"):
            load(dataset, image_size=8)


def table(rows: slice, names: list[str] | None = None, label: str = "label") -> pa.Table:
    pictures = [{"bytes": png(image), "path": None} for image in RGB[rows]]
    made = pa.table({"image": pictures, label: THREE[rows].tolist()})
    features = {label: {"names": names, "_type": "ClassLabel"}} if names else {}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_a_hugging_face_set_keeps_splits_and_names_of_classes(here: Path):
    (here / "hf" / "data").mkdir(parents=True)
    for name, rows in (
        ("train-00000-of-00002", slice(0, 30)),
        ("train-00001-of-00002", slice(30, 45)),
        ("validation-00000-of-00001", slice(45, 50)),
        ("test-00000-of-00001", slice(50, 60)),
    ):
        pq.write_table(table(rows, ["x", "y", "z"]), here / "hf" / "data" / f"{name}.parquet")
    data = load("parquet:hf")
    assert [len(split) for split in data.splits.values()] == [45, 5, 10]
    assert data.names == ("x", "y", "z")
    assert set(map(bytes, pixels(data)[:45])) == set(map(bytes, RGB[:45]))
    assert load("parquet:hf", image_size=8).spec.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "layout", ["{}.parquet", "{}/0000.parquet", "default/{}/0000.parquet", "data/{}-00000.parquet"]
)
def test_files_and_folders_are_named_by_their_splits(layout: str, here: Path):
    for name, rows in (("train", slice(0, 50)), ("test", slice(50, 60))):
        file = here / "hf" / layout.format(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows), file)
    data = load("parquet:hf")
    assert [len(split) for split in data.splits.values()] == [45, 5, 10]
    assert set(map(bytes, pixels(data)[50:])) == set(map(bytes, RGB[50:]))


def test_a_file_in_a_folder_that_is_called_like_one_is_read_once(here: Path):
    (here / "own" / "train.parquet").mkdir(parents=True)
    pq.write_table(table(slice(0, 60)), here / "own" / "train.parquet" / "part-0.parquet")
    assert len(read("parquet:own", Path()).images) == 60


def test_the_column_of_pictures_is_that_of_the_name(here: Path):
    made = table(slice(0, 60))
    pq.write_table(made.add_column(0, "hash", [[b"x"] * 60]), "own.parquet")
    assert len(read("parquet:own.parquet", Path()).images) == 60


def test_names_of_too_few_classes_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]):
    pq.write_table(table(slice(0, 60), ["x", "y"]), "own.parquet")
    assert load("parquet:own.parquet").names == ()
    assert "names 2 classes, but has a label 2; the names are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [1, 2], [0]], "has labels that are list; all must be whole numbers, or all texts"),
        ([0, None, 1], "has labels that are NoneType, int; all must be"),
        ([0.5, 1.5, 2.5], "has labels that are float; all must be"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[Any], message: str, here: Path):
    pictures = [{"bytes": png(image), "path": None} for image in RGB[:3]]
    pq.write_table(pa.table({"image": pictures, "label": labels}), "own.parquet")
    with pytest.raises(UserError, match=message):
        load("parquet:own.parquet")


def test_files_of_several_kinds_of_labels_are_refused(here: Path):
    (here / "own").mkdir()
    pq.write_table(table(slice(0, 30)), here / "own" / "train-0.parquet")
    texts = pa.table({"image": table(slice(30, 60))["image"], "label": ["a"] * 30})
    pq.write_table(texts, here / "own" / "train-1.parquet")
    with pytest.raises(UserError, match="has labels that are int, str; all must be"):
        load("parquet:own")


def test_a_file_without_rows_is_refused(here: Path):
    pq.write_table(table(slice(0, 60)).slice(0, 0), "own.parquet")
    with pytest.raises(UserError, match=r"parquet:own\.parquet has no training images"):
        load("parquet:own.parquet")


def test_what_is_ignored_may_be_anything(capsys: pytest.CaptureFixture[str]):
    """Objects, which would have to be unpickled, too."""
    meta: Any = np.array([{"made": "today"}], object)
    np.savez("own.npz", images=RGB, labels=THREE, meta=meta)
    assert load("npz:own.npz").spec.classes == 3
    assert capsys.readouterr().err == "elbolab: npz:own.npz: ignored: meta\n"


def test_what_a_zip_has_beside_arrays_is_refused_by_its_name(here: Path):
    np.savez("own.npz", images=RGB)
    with zipfile.ZipFile("own.npz", "a") as archive:
        archive.writestr("labels", b"hello")
    with pytest.raises(UserError, match=r"labels is no array; save it with numpy.savez"):
        load("npz:own.npz")


def test_texts_of_bytes_are_read_as_utf_8():
    np.savez("own.npz", images=RGB, labels=np.array(["é".encode(), b"b", b"c"])[THREE])
    assert load("npz:own.npz").names == ("b", "c", "é")


def test_one_parquet_file_is_split(here: Path):
    pq.write_table(table(slice(0, 60), label="labels"), "own.parquet")
    data = load("parquet:own.parquet")
    assert ([len(split) for split in data.splits.values()], data.spec.classes, data.names) == ([48, 6, 6], 3, ())
    pq.write_table(pa.table({"image": [png(image) for image in RGB]}), "bare.parquet")
    assert load("parquet:bare.parquet").spec.classes == 1


def test_what_is_no_parquet_of_pictures_is_refused(here: Path):
    with pytest.raises(UserError, match=r"parquet:none\.parquet cannot be read: there is no such file"):
        load("parquet:none.parquet")
    (here / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match=r"text\.parquet cannot be read as Parquet: "):
        load("parquet:text.parquet")
    pq.write_table(pa.table({"words": ["a", "b", "c"]}), "words.parquet")
    with pytest.raises(UserError, match="has no column of pictures as bytes; it has: words"):
        load("parquet:words.parquet")
    pq.write_table(pa.table({"image": [b"hello", None, png(RGB[0])]}), "broken.parquet")
    with pytest.raises(
        UserError, match=r"2 of 3 pictures cannot be read: broken\.parquet row 0 \(no picture\), broken"
    ):
        load("parquet:broken.parquet")


def test_a_path_in_the_name_of_a_dataset_is_shown_by_its_end_alone():
    assert set(KINDS_OF_PATHS) == {f"{kind}:" for kind in OWN}
    for kind in OWN:
        assert public(f"{kind}:/home/somebody/own.data") == f"{kind}:own.data"
        assert public(f"{kind}:data/own.data") == f"{kind}:data/own.data"
