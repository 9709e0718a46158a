"""A user's own images as arrays in files of numpy: npz, by the names of several makers, and npy."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from elbolab.data.memory_map import SHARD_BYTES, memory
from elbolab.data.own_arrays import SPLITS, Streamed, from_arrays, named_classes
from elbolab.data.stored import Arrays
from elbolab.support.errors import UserError

# By split, the names of its images and its labels: elbolab's own, MedMNIST's, Keras's.
LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {"train": ("images", "labels")},
    {split: (f"{split}_images", f"{split}_labels") for split in SPLITS},
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},
)
# So many files are named.
NAMED = 5
# An array of more than this part of memory is read row by row.
WHOLE = 1 / 8


def read_npz(path: Path, image_size: int | None = None, folder: Path = Path()) -> Arrays:
    """Arrays of an npz file, by the names of elbolab, MedMNIST (Yang et al. 2023) or Keras; nothing in it is executed.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4: whole numbers from 0 to 255, or floats from 0
    to 1 or to 255, which are rounded to whole numbers of 255. Labels, where they are there, are (N,) or (N, 1), whole
    numbers or texts. ``white`` may be the pixel that stands for 1, and ``classes`` the names (K,) of classes. What
    memory does not hold is read from a file in ``folder``. Raises UserError for anything else.
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
        known = {name for names in layout.values() for name in names} | {"white", "classes"}
        pictures = {images for images, _ in layout.values()}
        # What is ignored may be anything, and is not read.
        found: dict[str, Any] = {
            name: _array(what, file, name)
            if name not in pictures or not _is_large(file, name)
            else _streamed(what, file, name)
            for name in have
            if name in known
        }
        if others := [name for name in have if name not in known]:
            print(f"elbolab: {what}: ignored: {', '.join(others)}", file=sys.stderr, flush=True)
        parts = {
            split: (found[images], found.get(labels)) for split, (images, labels) in layout.items() if images in found
        }
        stored = from_arrays(what, parts, found.get("white"), (path,), folder)
    names = found.get("classes")
    if names is None or stored.names:
        return stored
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{what} has classes of dtype {names.dtype} and shape {names.shape}; they must be texts (K,)")
    return named_classes(what, stored, names.tolist())


def read_npy(path: Path, image_size: int | None = None, folder: Path = Path()) -> Arrays:
    """The images of an npy file, without labels, as ``read_npz`` has them."""
    what = f"npy:{path}"
    refuse_size(what, image_size)
    return from_arrays(what, {"train": (_load(what, path, np.ndarray), None)}, None, (path,), folder)


def refuse_size(what: str, image_size: int | None) -> None:
    """Raise UserError where a size is asked of arrays, whose images are as they are."""
    if image_size is not None:
        raise UserError(f"image_size={image_size} is for folder: and parquet:, and {what} is an array; leave it out")


def _load(what: str, path: Path, kind: type[Any]) -> Any:
    """What numpy has in a file, of this kind; raises UserError where it is not there, broken, or of another."""
    suffix = "npz" if kind is NpzFile else "npy"
    try:
        # What is large is read row by row.
        large = suffix == "npy" and path.is_file() and path.stat().st_size > WHOLE * memory()
        found = np.load(path, "r" if large else None, allow_pickle=False)
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


def _is_large(file: NpzFile, name: str) -> bool:
    """Whether an array of an npz file is better read row by row."""
    return _member(file, name).file_size > WHOLE * memory()


def _member(file: NpzFile, name: str) -> ZipInfo:
    """Where an array lies in its file, in which its name ends with .npy, or does not."""
    archive = _archive(file)
    return archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)


def _archive(file: NpzFile) -> ZipFile:
    assert file.zip is not None, "the file is open"
    return file.zip


def _streamed(what: str, file: NpzFile, name: str) -> Streamed:
    """An array of an npz file that is read row by row, compressed or not; nothing in it is executed."""

    def header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = npy.read_magic(stream)
        return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)

    def read() -> Iterator[np.ndarray]:
        each = max(1, SHARD_BYTES // max(1, dtype.itemsize * math.prod(shape[1:])))
        try:
            with _archive(file).open(_member(file, name)) as stream:
                header(stream)
                for start in range(0, shape[0], each):
                    size = (min(each, shape[0] - start), *shape[1:])
                    content = stream.read(math.prod(size) * dtype.itemsize)
                    yield np.frombuffer(content, dtype).reshape(size)
        except Exception as error:
            raise _unreadable(what, "npz", name, error) from error

    try:
        with _archive(file).open(_member(file, name)) as stream:
            shape, is_fortran, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError("allow_pickle")
    except Exception as error:
        raise _unreadable(what, "npz", name, error) from error
    if is_fortran and len(shape) > 1:
        raise UserError(
            f"{what} has {name} in Fortran's order, of which memory would have to hold all; save it with "
            "numpy.ascontiguousarray"
        )
    return Streamed(shape, dtype, read)
