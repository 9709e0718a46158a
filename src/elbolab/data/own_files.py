"""A user's own images as pictures, in folders or in Parquet, and every layout of them by its name."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from elbolab.data.array_files import read_npy, read_npz
from elbolab.data.memory_map import Store
from elbolab.data.own_arrays import SPLITS, assembled, named_classes
from elbolab.data.stored import Arrays
from elbolab.support.counters import counted
from elbolab.support.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# What folders and files of a split are called, files by the beginning of their names.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
# So many faults are named.
NAMED = 5
# The modes of Pillow whose pixels are grey; the others become RGB, without what is transparent.
GREY = {"1", "L", "LA", "La"}
# Of a Parquet file, whose groups of rows may be large.
ROWS_AT_ONCE = 256

Picture = tuple[str, Callable[[], BinaryIO]]
"""The name of a picture and what opens it."""


def read_folder(path: Path, image_size: int | None = None, folder: Path = Path()) -> Arrays:
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
    # Those of a split beside each other.
    order = sorted(range(len(files)), key=lambda row: SPLITS.index(splits[row]))
    files, splits = [files[row] for row in order], [splits[row] for row in order]
    classes = [classes[row] for row in order]
    pictures = ((str(file.relative_to(path)), partial(open, file, "rb")) for file in files)
    with Store.of_files(what, folder, files, image_size) as store:
        images = decode(what, pictures, len(files), image_size, store)
    # A folder of a folder of pictures is of one class.
    labels = np.array(classes) if len(set(classes)) > 1 else None
    # A picture that is added changes the time of its folder.
    folders = tuple({file.parent for file in files} | {path})
    return assembled(what, _parted(splits, images, labels), files=(*files, *folders))


def read_parquet(path: Path, image_size: int | None = None, folder: Path = Path()) -> Arrays:
    """A set of pictures as Hugging Face keeps it: a Parquet file, or a folder of them, where they or the folders in it
    are named by their splits.

    The column ``image`` or ``img``, else the first of bytes or of structs with ``bytes``, is the pictures, and
    ``label`` or ``labels`` their classes, whose names are taken from what the file says of its features. Pictures are
    as ``read_folder`` has them.
    """
    what = f"parquet:{path}"
    files = list(_files(path, {".parquet"})) if os.path.isdir(path) else [path]
    if not files:
        raise UserError(f"{what} has no file that ends with .parquet")
    within = {file: str(file.relative_to(path)) if file != path else file.name for file in files}
    split_of = {file: _split_of(name) if file != path else "train" for file, name in within.items()}
    # Those of a split beside each other.
    files.sort(key=lambda file: SPLITS.index(split_of[file]))
    names: list[str] = []
    columns: dict[Path, str] = {}
    splits: list[str] = []
    labels: list[Any] = []
    for file in files:
        with _parquet(what, file) as opened:
            columns[file], label = _columns(f"{what} {within[file]}", opened.schema_arrow)
            names = names or _class_names(opened.schema_arrow, label)
            rows = opened.metadata.num_rows
            labels += opened.read([label])[label].to_pylist() if label else [None] * rows
        splits += [split_of[file]] * rows
    if "train" not in splits:
        raise UserError(f"{what} has no training images; they are in train.parquet, train-0.parquet or a folder train")
    kinds = {type(one).__name__ for one in labels}
    if len(kinds) > 1 or not kinds <= {"int", "str", "bytes", "bool", "NoneType"}:
        raise UserError(
            f"{what} has labels that are {', '.join(sorted(kinds))}; all must be whole numbers, or all texts"
        )

    def pictures() -> Iterator[Picture]:
        for file in files:
            with _parquet(what, file) as opened:
                row = 0
                for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[columns[file]]):
                    for cell in batch.column(0).to_pylist():
                        content = cell["bytes"] if isinstance(cell, dict) else cell
                        yield f"{within[file]} row {row}", partial(BytesIO, content or b"")
                        row += 1

    with Store.of_files(what, folder, files, image_size) as store:
        images = decode(what, pictures(), len(splits), image_size, store)
    parts = _parted(splits, images, None if "NoneType" in kinds else np.array(labels))
    stored = assembled(what, parts, files=tuple(files))
    return stored if stored.names or not names else named_classes(what, stored, names)


@contextmanager
def _parquet(what: str, file: Path) -> Iterator["ParquetFile"]:
    """A Parquet file; raises UserError where it cannot be read."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            yield opened
    except FileNotFoundError:
        raise UserError(f"{what} cannot be read: there is no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


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
    """Images and labels by the split of each, where those of a split are beside each other."""
    own = {split: slice(splits.index(split), splits.index(split) + splits.count(split)) for split in set(splits)}
    return {
        split: (images[own[split]], None if labels is None else labels[own[split]]) for split in SPLITS if split in own
    }


def decode(what: str, pictures: Iterable[Picture], count: int, image_size: int | None, store: Store) -> np.ndarray:
    """The pixels uint8 (N, C, H, W) of ``count`` pictures, each by its name and what opens it, where ``store`` puts
    them; raises UserError naming faults.
    """
    if (kept := store.kept()) is not None:
        return kept
    images: np.ndarray | None = None
    shapes = set[tuple[int, ...]]()
    faults: list[str] = []
    with warnings.catch_warnings(), counted(f"reading {what}", count) as done:
        # Pictures twice as large as these are refused.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for row, (name, open_it) in enumerate(pictures):
            done(1)
            try:
                with open_it() as stream:
                    pixels = _pixels(stream, image_size).transpose(2, 0, 1)
            except UnidentifiedImageError:
                faults.append(f"{name} (no picture)")
                continue
            # Pillow raises what its decoders please, some of it no OSError.
            except Exception as error:
                faults.append(f"{name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
                continue
            shapes.add(pixels.shape[1:])
            # All the same all are looked at, so that all faults are told.
            if faults or len(shapes) > 1:
                continue
            if images is None:
                images = store.allocate((count, *pixels.shape))
            elif len(pixels) > images.shape[1]:
                images = store.widened(images, row, len(pixels))
            images[row] = pixels
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(
            f"{what}: {len(faults)} of {count} pictures cannot be read: {', '.join(faults[:NAMED])}{more}; "
            "remove them, or bring whole ones"
        )
    if len(shapes) > 1:
        (low, high), (wide, tall) = sorted(shapes)[0], sorted(shapes)[-1]
        raise UserError(
            f"{what} has pictures of {len(shapes)} sizes, from {low}x{high} to {wide}x{tall}; "
            "--image-size 32, or another, makes them square and of one size"
        )
    assert images is not None, "there is a picture at least"
    return store.keep(images)


def _pixels(stream: BinaryIO, image_size: int | None) -> np.ndarray:
    with Image.open(stream) as picture:
        return pixels_of(picture, image_size)


def pixels_of(picture: Image.Image, image_size: int | None = None) -> np.ndarray:
    """The pixels uint8 (H, W, C) of a picture; raises ValueError where nobody says what is white."""
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


def _columns(what: str, schema: Any) -> tuple[str, str | None]:
    """The columns of the pictures and of their classes."""
    import pyarrow as pa

    def is_picture(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if is_picture(field.type)]
    if not columns:
        raise UserError(f"{what} has no column of pictures as bytes; it has: {', '.join(schema.names)}")
    column = next((name for name in ("image", "img") if name in columns), columns[0])
    return column, next((name for name in ("label", "labels") if name in schema.names), None)


def _class_names(schema: Any, label: str | None) -> list[str]:
    said = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(said)["info"]["features"][label]
        return list(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return []


OWN: dict[str, Callable[[Path, int | None, Path], Arrays]] = {
    "npz": read_npz,
    "npy": read_npy,
    "folder": read_folder,
    "parquet": read_parquet,
}
"""A user's own images, each named as NAME:PATH, by what reads a path, with the side of the images or None, and
the folder for what memory does not hold."""
RESIZED = ("folder", "parquet")
"""Those whose images are pictures, which have the side that is asked for."""
