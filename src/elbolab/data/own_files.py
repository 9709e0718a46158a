"""A user's own images, in the layouts that they come in: arrays of numpy, folders of pictures, Parquet of pictures."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# What folders and files of a split are called, files by the beginning of their names.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
CHANNELS = (1, 3, 4)
# The modes of Pillow whose pixels are grey; the others become RGB, without what is transparent.
GREY = {"1", "L", "LA", "La"}
# So many faults are named.
NAMED = 5


def read_npz(path: Path, image_size: int | None = None) -> Arrays:
    """Arrays of an npz file, by the names of elbolab, MedMNIST (Yang et al. 2023) or Keras; nothing in it is executed.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4: whole numbers from 0 to 255, or floats from 0
    to 1 or to 255, which are rounded to whole numbers of 255. Labels, where they are there, are (N,) or (N, 1), whole
    numbers or texts. ``white`` may be the pixel that stands for 1. Raises UserError for anything else.
    """
    what = f"npz:{path}"
    refuse_size(what, image_size)
    with _load(what, path, NpzFile) as file:
        have = file.files
        layout = next((one for one in LAYOUTS if one["train"][0] in have), None)
        if layout is None:
            ways = ", ".join(f"{images} and {labels}" for images, labels in (one["train"] for one in LAYOUTS))
            there = ", ".join(have) or "none"
            raise UserError(f"{what} has no array 'images'; it has: {there}; name images and labels as one of: {ways}")
        known = {name for names in layout.values() for name in names} | {"white"}
        # What is ignored may be anything, and is not read.
        found = {name: _array(what, file, name) for name in have if name in known}
    if others := [name for name in have if name not in known]:
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
    scaled = all(one.dtype.kind == "f" and one.max() <= 1 for one in images.values())
    if scaled and said not in (None, 1):
        raise UserError(f"{what} has white={said} beside floats from 0 to 1, where white is 1; leave it out")
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

    Folders ``train``, ``val`` and ``test`` are splits, with the classes in them. Hidden files are left out, links are
    followed. Grey pictures have one channel; where any has colours all have three, without transparency. Pictures of 16
    bits are scaled to 8. All must be of one size, unless ``image_size`` is the side of the squares that they are cut
    and resized to. Raises UserError naming the files that cannot be read.
    """
    what = f"folder:{path}"
    if not os.path.isdir(path):
        why = "it is no folder, but a file" if os.path.exists(path) else "there is no such folder"
        raise UserError(f"{what} cannot be read: {why}")
    files = list(_files(path, SUFFIXES))
    if not files:
        raise UserError(f"{what} has no pictures; it may have files that end with {', '.join(sorted(SUFFIXES))}")
    within = [file.relative_to(path).parts for file in files]
    tops = {parts[0] for parts in within if len(parts) > 1}
    splits = ["train"] * len(files)
    if "train" in {SPLIT_NAMES.get(top.lower()) for top in tops} and all(top.lower() in SPLIT_NAMES for top in tops):
        # A loose picture beside the splits is found below, as one beside classes is.
        splits = [SPLIT_NAMES.get(parts[0].lower(), "train") for parts in within]
        within = [parts[1:] if len(parts) > 1 else parts for parts in within]
    classes = [parts[0] if len(parts) > 1 else "" for parts in within]
    if 0 < (loose := classes.count("")) < len(classes):
        raise UserError(
            f"{what} has {loose} pictures beside folders of pictures; put them into a folder of a class, or elsewhere"
        )
    images = decode(what, [(str(file.relative_to(path)), partial(open, file, "rb")) for file in files], image_size)
    # A folder of a folder of pictures is of one class.
    labels = np.array(classes) if len(set(classes)) > 1 else None
    parts = _parted(splits, images, labels)
    # A picture that is added changes the time of its folder.
    folders = tuple({file.parent for file in files} | {path})
    return from_arrays(what, parts, files=(*files, *folders))


def read_parquet(path: Path, image_size: int | None = None) -> Arrays:
    """A set of pictures as Hugging Face keeps it: a Parquet file, or a folder of them, where they or the folders in it
    are named by their splits.

    The column ``image`` or ``img``, else the first of bytes or of structs with ``bytes``, is the pictures, and
    ``label`` or ``labels`` their classes, whose names are taken from what the file says of its features. Pictures are
    as ``read_folder`` has them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    what = f"parquet:{path}"
    files = list(_files(path, {".parquet"})) if os.path.isdir(path) else [path]
    if not files:
        raise UserError(f"{what} has no file that ends with .parquet")
    names: list[str] = []
    pictures: list[tuple[str, Callable[[], BinaryIO]]] = []
    splits: list[str] = []
    labels: list[Any] = []
    for file in files:
        name = str(file.relative_to(path)) if file != path else file.name
        try:
            table = pq.ParquetFile(file).read()
        except FileNotFoundError:
            raise UserError(f"{what} cannot be read: there is no such file") from None
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        column, label = _columns(f"{what} {name}", table)
        names = names or _class_names(table, label)
        for row, cell in enumerate(table[column].to_pylist()):
            content = cell["bytes"] if isinstance(cell, dict) else cell
            pictures.append((f"{name} row {row}", partial(BytesIO, content or b"")))
        splits += [_split_of(name) if file != path else "train"] * len(table)
        labels += table[label].to_pylist() if label else [None] * len(table)
    if "train" not in splits:
        raise UserError(f"{what} has no training images; they are in train.parquet, train-0.parquet or a folder train")
    kinds = {type(one).__name__ for one in labels}
    if len(kinds) > 1 or not kinds <= {"int", "str", "bytes", "bool", "NoneType"}:
        raise UserError(
            f"{what} has labels that are {', '.join(sorted(kinds))}; all must be whole numbers, or all texts"
        )
    images = decode(what, pictures, image_size)
    stored = from_arrays(
        what, _parted(splits, images, None if "NoneType" in kinds else np.array(labels)), files=tuple(files)
    )
    return stored if stored.names or not names else _named_classes(what, stored, names)


def _files(path: Path, suffixes: set[str]) -> Iterator[Path]:
    """The files in a folder and those in it that end so, without hidden ones, ordered by their names."""
    seen = set[str]()
    for folder, inner, files in os.walk(path, followlinks=True):
        # A link may lead back to where it is.
        inner[:] = sorted(name for name in inner if name[0] != "." and os.path.realpath(Path(folder, name)) not in seen)
        seen |= {os.path.realpath(Path(folder, name)) for name in inner}
        for name in sorted(files):
            if name[0] != "." and Path(name).suffix.lower() in suffixes and os.path.isfile(Path(folder, name)):
                yield Path(folder, name)


def _split_of(name: str) -> str:
    """The split that a file is of, by its name or that of a folder above it; train where none says so."""
    parts = (part.replace("-", ".").partition(".")[0].lower() for part in Path(name).parts)
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), "train")


def _parted(
    splits: Sequence[str], images: np.ndarray, labels: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Images and labels by the split of each."""
    rows = {split: np.flatnonzero(np.array(splits) == split) for split in SPLITS if split in splits}
    return {split: (images[own], None if labels is None else labels[own]) for split, own in rows.items()}


def decode(what: str, pictures: Sequence[tuple[str, Callable[[], BinaryIO]]], image_size: int | None) -> np.ndarray:
    """The pixels uint8 (N, H, W, C) of pictures, each by its name and what opens it; raises UserError naming faults."""
    found: list[np.ndarray] = []
    faults: list[str] = []
    with warnings.catch_warnings(), counted(f"reading {what}", len(pictures)) as count:
        # Pictures twice as large as these are refused.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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
        if picture.mode in ("I", "F"):
            raise ValueError("pixels of 32 bits, of which nobody says what is white; save it with 8 or 16")
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray(np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8))
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
            f"{what} have shape {shape}; allowed: (N,H,W), (N,H,W,C) and (N,C,H,W) with C 1, 3 or 4, and N, H and W "
            "from 1; reshape what is flat"
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
            f"from 0 to 1{': (x + 1) / 2 of these' if low >= -1 and high <= 1 else ''}"
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
                f"shape ({count},), one an image: labels.argmax(1) of one-hot rows"
            )
        own = np.char.decode(own, "utf-8", "replace") if own.dtype.kind == "S" else own
        # As whole numbers of 64 bits the largest would be negative.
        flat[split] = own if own.dtype.kind == "U" else own.clip(max=np.iinfo(np.int64).max).astype(np.int64)
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


def _array(what: str, file: NpzFile, name: str) -> np.ndarray:
    """An array of an npz file; nothing in it is executed."""
    try:
        found = file[name]
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{name} is no array")
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

    columns = [field.name for field in table.schema if is_picture(field.type)]
    if not columns:
        raise UserError(f"{what} has no column of pictures as bytes; it has: {', '.join(table.column_names)}")
    column = next((name for name in ("image", "img") if name in columns), columns[0])
    return column, next((name for name in ("label", "labels") if name in table.column_names), None)


def _class_names(table: Any, label: str | None) -> list[str]:
    said = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(said)["info"]["features"][label]
        return list(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return []


def _named_classes(what: str, stored: Arrays, names: Sequence[str]) -> Arrays:
    most = max(int(pair[1].max()) for pair in ((stored.images, stored.labels), stored.val, stored.test) if pair)
    if most < len(names):
        return replace(stored, names=tuple(names))
    print(
        f"elbolab: {what} names {len(names)} classes, but has a label {most}; the names are left out", file=sys.stderr
    )
    return stored


OWN: dict[str, Callable[[Path, int | None], Arrays]] = {
    "npz": read_npz,
    "npy": read_npy,
    "folder": read_folder,
    "parquet": read_parquet,
}
"""A user's own images, each named as NAME:PATH, by what reads a path, with the side of the images or None."""
