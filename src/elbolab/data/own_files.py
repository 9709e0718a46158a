"""A user's own images, in the layouts that they come in: arrays of numpy, folders of pictures, Parquet of pictures."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.npyio import NpzFile
from PIL import Image, ImageOps, UnidentifiedImageError

from elbolab.data.stored import Arrays
from elbolab.support.counters import counted
from elbolab.support.errors import UserError, shown

SPLITS = ("train", "val", "test")
# By split, the names of its images and its labels: elbolab's own, MedMNIST's, Keras's.
LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {"train": ("images", "labels")},
    {split: (f"{split}_images", f"{split}_labels") for split in SPLITS},
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},
)
# What Hugging Face calls the splits, by the beginning of a file's name.
PARQUET_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
CHANNELS = (1, 3)
# The modes of Pillow whose pixels are grey; the others become RGB, without what is transparent.
GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
# So many faults are named.
NAMED = 5


def read_npz(path: Path, image_size: int | None = None) -> Arrays:
    """Arrays of an npz file, by the names of elbolab, MedMNIST (Yang et al. 2023) or Keras; nothing in it is executed.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3: whole numbers from 0 to 255, or floats from 0 to
    1 or to 255, which are rounded to whole numbers of 255. Labels, where they are there, are (N,) or (N, 1), whole
    numbers or texts. ``white`` may be the pixel that stands for 1. Raises UserError for anything else.
    """
    what = f"npz:{path}"
    refuse_size(what, image_size)
    found = _arrays(path)
    layout = next((one for one in LAYOUTS if one["train"][0] in found), None)
    if layout is None:
        raise UserError(f"{what} has no array 'images'; it has: {', '.join(found) or 'none'}")
    known = {name for names in layout.values() for name in names} | {"white"}
    if others := [name for name in found if name not in known]:
        print(f"elbolab: {what}: ignored: {', '.join(others)}", file=sys.stderr, flush=True)
    parts = {split: (found[images], found.get(labels)) for split, (images, labels) in layout.items() if images in found}
    return from_arrays(what, parts, found.get("white"), (path,))


def read_npy(path: Path, image_size: int | None = None) -> Arrays:
    """The images of an npy file, without labels, as ``read_npz`` has them."""
    what = f"npy:{path}"
    refuse_size(what, image_size)
    return from_arrays(what, {"train": (_load(what, path, np.ndarray), None)}, files=(path,))


def from_arrays(
    what: str,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    white: np.ndarray | None = None,
    files: tuple[Path, ...] = (),
) -> Arrays:
    """The images and labels of the splits that ``parts`` has, train always; raises UserError naming ``what``."""
    if white is not None and (white.dtype.kind not in "iu" or white.shape != () or not 1 <= white <= 255):
        raise UserError(f"{what} has white={shown(white.tolist())}; it must be one integer from 1 to 255")
    images = {split: _images(f"{what} {_named(split, parts)}", one) for split, (one, _) in parts.items()}
    if len({one.shape[1:] for one in images.values()}) > 1:
        shapes = ", ".join(f"{split} {one.shape[1:]}" for split, one in images.items())
        raise UserError(f"{what} has images of several shapes: {shapes}; all must be of one")
    said = None if white is None else int(white)
    # Of floats from 0 to 1 it is known what white is.
    scaled = said in (None, 1) and all(one.dtype.kind == "f" and one.max() <= 1 for one in images.values())
    whole = {split: _whole(one, scaled) for split, one in images.items()}
    labels, names = _labels(what, {split: one for split, (_, one) in parts.items()}, whole)
    pairs = {split: (whole[split], labels[split]) for split in whole}
    count = len(whole["train"])
    if count < (least := 1 + ("val" not in pairs) + ("test" not in pairs)):
        raise UserError(f"{what} has {count} images; it must have at least {least}, one for each split")
    tenth = max(1, count // 10)
    return Arrays(
        *pairs["train"],
        pairs.get("test"),
        len(whole["val"]) if "val" in whole else tenth,
        len(whole["test"]) if "test" in whole else tenth,
        255 if scaled else said,
        files,
        pairs.get("val"),
        names,
    )


def read_folder(path: Path, image_size: int | None = None) -> Arrays:
    """The pictures in a folder, or in a folder a class as torchvision's ImageFolder has them, ordered by their names.

    Grey pictures have one channel; where any has colours all have three, without transparency. Pictures of 16 bits are
    scaled to 8. All must be of one size, unless ``image_size`` is the side that they are cut to a square of and resized
    to. Raises UserError naming the files that cannot be read.
    """
    what = f"folder:{path}"
    if not os.path.isdir(path):
        raise UserError(f"{what} cannot be read: there is no such folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    classes = {file: file.relative_to(path).parts[0] if file.parent != path else "" for file in files}
    names = tuple(sorted(set(classes.values())))
    if not files:
        raise UserError(f"{what} has no pictures; it may have files that end with {', '.join(sorted(SUFFIXES))}")
    if len(names) > 1 and not names[0]:
        loose = sum(not name for name in classes.values())
        raise UserError(
            f"{what} has {loose} pictures beside folders of pictures; put them into a folder of a class, or elsewhere"
        )
    images = decode(what, [(str(file.relative_to(path)), partial(open, file, "rb")) for file in files], image_size)
    labels = np.array([classes[file] for file in files])
    # A folder of a folder of pictures is of one class.
    parts = {"train": (images, labels if len(names) > 1 else None)}
    # A picture that is added changes the time of its folder.
    folders = tuple({file.parent for file in files} | {path})
    return from_arrays(what, parts, np.array(255), (*files, *folders))


def read_parquet(path: Path, image_size: int | None = None) -> Arrays:
    """A set of pictures as Hugging Face keeps it: a Parquet file, or a folder of them, which are named by their splits.

    The first column of bytes, or of structs with ``bytes``, is the pictures, and ``label`` or ``labels`` their classes,
    whose names are taken from what the file says of its features. Pictures are as ``read_folder`` has them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    what = f"parquet:{path}"
    files = sorted(path.rglob("*.parquet")) if os.path.isdir(path) else [path]
    if not files:
        raise UserError(f"{what} has no file that ends with .parquet")
    found: dict[str, list[pa.Table]] = {}
    names: list[str] = []
    for file in files:
        try:
            table = pq.read_table(file)
        except FileNotFoundError:
            raise UserError(f"{what} cannot be read: there is no such file") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        split = PARQUET_SPLITS.get(file.name.partition("-")[0], "train") if os.path.isdir(path) else "train"
        found.setdefault(split, []).append(table)
    if "train" not in found:
        raise UserError(f"{what} has no file of training images; their names begin with train-")
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    pictures: list[tuple[str, Callable[[], BinaryIO]]] = []
    ends: dict[str, int] = {}
    labels: dict[str, np.ndarray | None] = {}
    for split, tables in found.items():
        table = pa.concat_tables(tables, promote_options="default")
        column, label = _columns(what, table)
        names = names or _class_names(table, label)
        cells = table[column].to_pylist()
        for row, cell in enumerate(cells):
            content = cell["bytes"] if isinstance(cell, dict) else cell
            pictures.append((f"{split} row {row}", partial(BytesIO, content or b"")))
        ends[split] = len(pictures)
        labels[split] = None if label is None else np.asarray(table[label].to_pylist())
    images = decode(what, pictures, image_size)
    start = 0
    for split, end in ends.items():
        parts[split] = images[start:end], labels[split]
        start = end
    stored = from_arrays(what, parts, np.array(255), tuple(files))
    return stored if stored.names or not names else _named_classes(stored, names)


def decode(what: str, pictures: Sequence[tuple[str, Callable[[], BinaryIO]]], image_size: int | None) -> np.ndarray:
    """The pixels uint8 (N, H, W, C) of pictures, each by its name and what opens it; raises UserError naming faults."""
    found: list[np.ndarray] = []
    faults: list[str] = []
    with counted(f"reading {what}", len(pictures)) as count:
        for name, open_it in pictures:
            try:
                with open_it() as stream:
                    found.append(_pixels(stream, image_size))
            except UnidentifiedImageError:
                faults.append(f"{name} (no picture)")
            # Pillow raises what its decoders please, some of it no OSError.
            except Exception as error:
                faults.append(f"{name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            count(1)
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(
            f"{what}: {len(faults)} of {len(pictures)} pictures cannot be read: {', '.join(faults[:NAMED])}{more}; "
            "remove them, or bring whole ones"
        )
    shapes = {image.shape[:2] for image in found}
    if len(shapes) > 1:
        (low, high), (wide, tall) = sorted(shapes)[0], sorted(shapes)[-1]
        raise UserError(
            f"{what} has pictures of {len(shapes)} sizes, from {low}x{high} to {wide}x{tall}; "
            "--image-size 32, or another, makes them square and of one size"
        )
    channels = max(image.shape[2] for image in found)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in found])


def refuse_size(what: str, image_size: int | None) -> None:
    """Raise UserError where a size is asked of arrays, whose images are as they are."""
    if image_size is not None:
        raise UserError(f"image_size={image_size} is for folder: and parquet:, and {what} is an array; leave it out")


def _pixels(stream: BinaryIO, image_size: int | None) -> np.ndarray:
    with Image.open(stream) as picture:
        # Which way up it is may be said beside it.
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in GREY and picture.mode not in ("1", "L", "LA", "La"):
            pixels = np.asarray(picture, np.float64)
            # As PNG and TIFF keep 16 bits.
            picture = Image.fromarray(np.rint(pixels.clip(0, 65535) / 257).astype(np.uint8))
        picture = picture.convert("L" if picture.mode in GREY else "RGB")
        if image_size is not None:
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _named(split: str, parts: Iterable[str]) -> str:
    return "images" if list(parts) == ["train"] else f"{split} images"


def _images(what: str, images: np.ndarray) -> np.ndarray:
    """Images as (N, C, H, W), of whatever numbers; raises UserError where they are none."""
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    last = images.ndim == 4 and shape[-1] in CHANNELS
    if images.ndim != 4 or 0 in images.shape or not (last or images.shape[1] in CHANNELS or len(shape) == 3):
        raise UserError(
            f"{what} have shape {shape}; allowed: (N,H,W), (N,H,W,C) and (N,C,H,W) with C 1 or 3, and N, H and W from 1"
        )
    if last or len(shape) == 3:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind not in "iufb":
        raise UserError(f"{what} have dtype {images.dtype}; they must be numbers")
    low, high = images.min(), images.max()
    # NaN is in no order.
    if not (low >= 0 and high <= 255):
        raise UserError(
            f"{what} have dtype {images.dtype} and go from {low} to {high}; they must go from 0 to 255, or as floats "
            "from 0 to 1"
        )
    return images


def _whole(images: np.ndarray, scaled: bool) -> np.ndarray:
    if images.dtype.kind == "f":
        images = np.rint(images * 255 if scaled else images)
    return np.ascontiguousarray(images.astype(np.uint8))


def _labels(
    what: str, given: Mapping[str, np.ndarray | None], images: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The classes of every split's images as whole numbers from 0, all 0 where no split has labels, and their names."""
    if all(one is None for one in given.values()):
        return {split: np.zeros(len(one), np.int64) for split, one in images.items()}, ()
    flat: dict[str, np.ndarray] = {}
    for split, labels in given.items():
        count = len(images[split])
        if labels is None:
            raise UserError(f"{what} has no labels of its {split} images, but of others; give all or none")
        own = labels[:, 0] if labels.shape == (count, 1) else labels
        if own.shape != (count,) or own.dtype.kind not in "iubUS":
            raise UserError(
                f"{what} labels have dtype {labels.dtype} and shape {labels.shape}; they must be integers or texts of "
                f"shape ({count},), one an image"
            )
        flat[split] = own.astype(str) if own.dtype.kind in "US" else own.astype(np.int64)
    if len({own.dtype.kind for own in flat.values()}) > 1:
        raise UserError(f"{what} has labels of whole numbers and of texts; give one kind")
    every = np.concatenate(list(flat.values()))
    if every.dtype.kind == "U":
        names, numbers = np.unique(every, return_inverse=True)
        cuts = np.cumsum([len(own) for own in flat.values()])[:-1]
        return dict(zip(flat, np.split(numbers.astype(np.int64), cuts), strict=True)), tuple(map(str, names))
    # The largest label says how many classes a classifier has.
    if every.min() < 0 or every.max() >= len(every):
        raise UserError(
            f"{what} labels are from {every.min()} to {every.max()}; they must be from 0 to less than {len(every)}, "
            "the number of images: count the classes from 0"
        )
    return flat, ()


def _load(what: str, path: Path, kind: type[Any]) -> Any:
    """What numpy has in a file, of this kind; raises UserError where it is not there, broken, or of another."""
    suffix = "npz" if kind is NpzFile else "npy"
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, kind):
            other = "an npy file, which has one array" if suffix == "npz" else "an npz file, which has several"
            raise ValueError(f"it is {other}")
    except FileNotFoundError:
        there = ", ".join(f"{suffix}:{one}" for one in sorted(path.parent.glob(f"*.{suffix}"))[:NAMED])
        remedy = f"there are: {there}" if there else f"no {suffix} file is in {path.parent.absolute()}"
        raise UserError(f"{what} cannot be read: there is no such file; {remedy}") from None
    # A broken file has numpy, zipfile and zlib raise what they please, some of it no OSError and no ValueError.
    except Exception as error:
        raise _unreadable(what, suffix, "", error) from error
    return found


def _unreadable(what: str, suffix: str, name: str, error: Exception) -> UserError:
    why = str(error).partition("\n")[0]
    if "allow_pickle" in why:
        # To allow it, as numpy proposes, would execute what the file says.
        numbers = "has dtype object, and these are numbers only, as from labels.astype(int)"
        why = f"{name} {numbers}" if name else f"it is no {suffix} file"
    save = "numpy.savez(file, images=..., labels=...)" if suffix == "npz" else "numpy.save(file, images)"
    return UserError(f"{what} cannot be read as an {suffix} file of plain arrays: {why}; save it with {save}")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing in the file is executed."""
    what = f"npz:{path}"
    found: dict[str, np.ndarray] = {}
    with _load(what, path, NpzFile) as file:
        for name in file.files:
            try:
                found[name] = file[name]
            except Exception as error:
                raise _unreadable(what, "npz", name, error) from error
    return found


def _columns(what: str, table: Any) -> tuple[str, str | None]:
    """The columns of the pictures and of their classes."""
    import pyarrow as pa

    def is_picture(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    column = next((field.name for field in table.schema if is_picture(field.type)), None)
    if column is None:
        raise UserError(f"{what} has no column of pictures as bytes; it has: {', '.join(table.column_names)}")
    return column, next((name for name in ("label", "labels") if name in table.column_names), None)


def _class_names(table: Any, label: str | None) -> list[str]:
    said = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(said)["info"]["features"][label]
        return list(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return []


def _named_classes(stored: Arrays, names: Sequence[str]) -> Arrays:
    most = max(int(pair[1].max()) for pair in ((stored.images, stored.labels), stored.val, stored.test) if pair)
    return replace(stored, names=tuple(names)) if most < len(names) else stored
