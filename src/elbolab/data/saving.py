"""Images that a program has, written to a file that every config, command and study takes as its dataset."""

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from elbolab.config.limits import expanded
from elbolab.data.own_arrays import SPLITS, from_arrays
from elbolab.data.own_files import pixels_of
from elbolab.data.stored import white_table
from elbolab.support.atomic_files import replace
from elbolab.support.errors import UserError, reason
from elbolab.support.random_streams import own_stream

Part = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]
"""Images, their labels where they have any, and the names of the classes."""


def save_dataset(data: Any, path: str | Path) -> str:
    """Write images to the npz file ``path``; returns the dataset's name, ``"npz:PATH"``, with the path absolute.

    ``data`` is a torch ``Dataset`` or a list, whose items are images or pairs (image, label); or a pair (images,
    labels) of arrays or tensors; or images alone; or a dict of any of these by split: ``train``, and maybe ``val`` and
    ``test``. Images are arrays or tensors (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4, or of an item pictures
    of Pillow too: whole numbers from 0 to 255, or floats from 0 to 1 or to 255, which are rounded to 8 bits. Labels are
    whole numbers from 0, or texts; the names in a dataset's ``classes`` are kept. What a dataset draws at random is
    drawn once. The images are put together in memory, floats as floats.

    The file has its name only when it is whole. Raises UserError where it cannot be written, and for data that no
    dataset could be made of.
    """
    path = expanded(Path(path)).absolute()
    path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    by_split = data if isinstance(data, Mapping) else {"train": data}
    if "train" not in by_split or not {*by_split} <= {*SPLITS}:
        have = ", ".join(map(str, by_split)) or "none"
        raise UserError(f"data has the splits {have}; it must have train, and may have val and test")
    with _as_they_were():
        parts = {split: _part(f"data {split}" if len(by_split) > 1 else "data", one) for split, one in by_split.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(suffix=".part", prefix=path.name, dir=path.parent) as folder:
            part = Path(folder, path.name)
            np.savez(part, allow_pickle=False, **_arrays(parts, Path(folder)))
            replace(part, path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written: {why}; name a file in a folder that can be") from error
    return f"npz:{path}"


def _arrays(parts: Mapping[str, Part], folder: Path) -> dict[str, np.ndarray]:
    """What the file has, by name; images that memory does not hold once more are put together in ``folder``."""
    given = {split: (images, labels) for split, (images, labels, _) in parts.items()}
    stored = from_arrays("data", given, folder=folder)
    pairs = {"train": (stored.images, stored.labels), "val": stored.val, "test": stored.test}
    white_table("data", max(int(pair[0].max()) for pair in pairs.values() if pair), stored.white, is_npz=False)
    classes = {names for _, _, names in parts.values() if names}
    if len(classes) > 1:
        raise UserError("data has other classes in one split than in another; give every split the same classes")
    # Where all pixels are dark, that they are is said.
    arrays = {"white": np.array(255)} if stored.white == 255 else {}
    has_labels = parts["train"][1] is not None
    if has_labels and (names := stored.names or next(iter(classes), ())):
        arrays["classes"] = np.array(names)
    for split, pair in pairs.items():
        if pair is not None:
            prefix = f"{split}_" if len(parts) > 1 else ""
            arrays[f"{prefix}images"] = pair[0]
            if has_labels:
                arrays[f"{prefix}labels"] = pair[1]
    return arrays


@contextmanager
def _as_they_were() -> Iterator[None]:
    """Leave the random numbers of the caller as they were, whatever a dataset draws."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with own_stream(), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _part(what: str, data: Any) -> Part:
    """The arrays of one split."""
    if isinstance(data, DataLoader):
        raise UserError(f"{what} is a DataLoader, which gives batches; hand over its .dataset")
    if isinstance(data, tuple) and len(data) == 2:
        return _array(what, "images", data[0]), _array(what, "labels", data[1]), ()
    if isinstance(data, np.ndarray | Tensor):
        return _array(what, "images", data), None, ()
    if isinstance(data, IterableDataset | list) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        # A dataset is asked for its items by number, since many do not say where they end.
        items = data if isinstance(data, IterableDataset | list) else (data[row] for row in range(len(data)))
        return (*_items(what, items), _classes(data))
    raise UserError(
        f"{what} is a {type(data).__name__}; it must be a torch Dataset, a pair (images, labels), images, or a dict of "
        "these by split"
    )


def _items(what: str, items: Iterable[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The images and labels of a dataset item by item; raises UserError naming the first that is wrong."""
    images: list[np.ndarray] = []
    labels: list[Any] = []
    for row, item in enumerate(items):
        pair = item if isinstance(item, tuple | list) else (item,)
        if len(pair) not in (1, 2) or not isinstance(pair[0], np.ndarray | Tensor | Image.Image):
            kinds = ", ".join(type(one).__name__ for one in pair)
            raise UserError(
                f"{what} item {row} is ({kinds}); it must be an image as tensor, array or picture of Pillow, or a pair "
                "of image and label"
            )
        try:
            image = pixels_of(pair[0]) if isinstance(pair[0], Image.Image) else _array(what, "images", pair[0])
        except ValueError as error:
            raise UserError(f"{what} item {row} cannot be read: {reason(error)}") from error
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{what} item {row} has an image of shape {image.shape}, and item 0 of {images[0].shape}; bring all to "
                "one, as by torchvision.transforms.v2.Resize"
            )
        if images and (image.dtype.kind == "f") != (images[0].dtype.kind == "f"):
            raise UserError(f"{what} item {row} has pixels of {image.dtype}, and item 0 of {images[0].dtype}; give one")
        images.append(image)
        labels += [label.item() if isinstance(label, Tensor) and label.numel() == 1 else label for label in pair[1:]]
    if not images or len(labels) not in (0, len(images)):
        raise UserError(
            f"{what} has {len(images)} images and {len(labels)} labels; give images, and labels to all or none"
        )
    return np.stack(images), _array(what, "labels", labels) if labels else None


def _array(what: str, name: str, given: Any) -> np.ndarray:
    """A tensor, an array or a list as an array."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        # Numpy has no bfloat16.
        return (given.float() if given.is_floating_point() else given).numpy()
    try:
        return np.asarray(given)
    except ValueError as error:
        raise UserError(f"{what} has {name} that are no array: {reason(error)}") from error


def _classes(data: Any) -> tuple[str, ...]:
    """The names of the classes that a dataset, or the one that it is a part of, says it has."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", None)
    is_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_names and names else ()
