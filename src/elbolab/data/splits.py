"""Datasets read by their names, and cut into stratified splits."""

import hashlib
import os
import re
import warnings
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbolab.config.limits import expanded
from elbolab.data.array_files import refuse_size
from elbolab.data.batches import Data, DataSpec, Split, stratified_order
from elbolab.data.memory_map import in_shards, is_mapped, take
from elbolab.data.own_files import OWN
from elbolab.data.readers import DATASETS
from elbolab.data.stored import HALF, Arrays, Pair, white_table
from elbolab.support.errors import UserError


def read(dataset: str, data_dir: Path, image_size: int | None = None) -> Arrays:
    """The arrays of a dataset by its name, with 255 as white; ``image_size`` is the side of pictures read from files.

    Raises UserError for an unknown name, missing or broken files, and images that may have another white.
    """
    name, _, path = dataset.partition(":")
    if (name not in OWN or not path) and dataset not in DATASETS:
        known = f"there are: {', '.join(DATASETS)}, and {', '.join(f'{own}:PATH' for own in OWN)}"
        raise UserError(f"dataset={dataset!r} does not exist{_meant(dataset)}; {known}")
    if dataset in DATASETS:
        refuse_size(dataset, image_size)
        stored = DATASETS[dataset](data_dir)
    else:
        stored = OWN[name](expanded(Path(path)), image_size, data_dir)

    def scaled(images: np.ndarray) -> np.ndarray:
        table = white_table(dataset, int(images.max()), stored.white, name == "npz")
        return images if table is None else table[images]

    own = {split: pair and (scaled(pair[0]), pair[1]) for split, pair in (("val", stored.val), ("test", stored.test))}
    return replace(stored, images=scaled(stored.images), **own)


def _meant(dataset: str) -> str:
    """What a name that does not exist may be meant for."""
    kind, path = re.sub(r"[:=].*", "", dataset, flags=re.DOTALL).lower(), dataset
    if kind in OWN:
        path = dataset[len(kind) + 1 :]
    else:
        kind = "folder" if os.path.isdir(expanded(Path(path))) else Path(path).suffix.lower().removeprefix(".")
    if kind in OWN and path:
        return f"; did you mean {kind}:{path}?"
    close = get_close_matches(dataset.lower(), DATASETS, 1)
    return f"; did you mean {close[0]}?" if close else ""


def load_data(
    dataset: str,
    data_dir: Path,
    train_size: int | None = None,
    val_size: int | None = None,
    test_size: int | None = None,
    split_seed: int = 0,
    binarise: str = "no",
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Data:
    """Read a dataset, binarise it if so wanted ("once" or at a "half"), and cut it; splits of its own stay apart.

    Raises UserError for an unknown name, missing or broken files, and sizes that it cannot give.
    """
    stored = read(dataset, data_dir, image_size)
    change = None
    if is_mapped(stored.images):
        if binarise == "once":
            raise UserError(
                f"binarise=once draws for all images of {dataset} at once, and they are more than half of the memory; "
                "use binarise=half"
            )
        change = _black_and_white if binarise == "half" else None
    else:
        stored = _binarised(stored, binarise, split_seed)

    def part(pair: Pair, rows: np.ndarray, before: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images, labels and indices of these rows, ``before`` which the dataset has so many other images."""
        images, labels = pair
        return take(images, rows, change, f"{before} {binarise}"), labels[rows], rows + before

    order, others = stratified_order(stored.labels, split_seed), len(stored.labels)
    parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    # The test and validation images are taken first, so that another train_size leaves them as they are.
    for split, own, size in (
        ("test", stored.test, test_size or stored.test_size),
        ("val", stored.val, val_size or stored.val_size),
    ):
        if own is None:
            if size >= len(order):
                raise UserError(
                    f"{split}_size={size} must be less than {len(order)}, the images of {dataset} that no "
                    "other split has"
                )
            parts[split], order = part((stored.images, stored.labels), order[:size]), order[size:]
        else:
            if size > (most := len(own[1])):
                raise UserError(f"{split}_size={size} must be at most {most}, the images that {dataset} has for it")
            parts[split] = part(own, stratified_order(own[1], split_seed)[:size], others)
            others += most
    if (train_size := train_size or len(order)) > len(order):
        raise UserError(
            f"train_size={train_size} must be at most {len(order)}, the images of {dataset} that no other split has"
        )
    parts = {
        "train": part((stored.images, stored.labels), order[:train_size]),
        "val": parts["val"],
        "test": parts["test"],
    }
    content = _digest(parts)
    splits = {
        split: Split(
            split,
            _tensor(images, device),
            *(torch.from_numpy(array).to(device) for array in (labels.astype(np.int64), index)),
            digest=content,
        )
        for split, (images, labels, index) in parts.items()
    }
    classes = max(int(pair[1].max()) for pair in ((stored.images, stored.labels), stored.val, stored.test) if pair) + 1
    spec = DataSpec(stored.images.shape[1:], classes, train_size, len(splits["val"]), content)
    return Data(dataset, **splits, spec=spec, files=stored.files, names=stored.names)


def _binarised(stored: Arrays, how: str, seed: int) -> Arrays:
    """The images black and white: white with the probability of their grey, or above a half."""
    if how == "no":
        return stored
    # Of another stream than the split's.
    rng = np.random.default_rng([seed, 1])

    def black_and_white(images: np.ndarray) -> np.ndarray:
        # A draw from 0 to 254 is below v with probability v / 255.
        return _black_and_white(images, rng.integers(0, 255, images.shape, np.uint8) if how == "once" else HALF - 1)

    # Drawn in this order since before a dataset could have a validation split of its own.
    test, images, val = (
        pair and (black_and_white(pair[0]), pair[1])
        for pair in (stored.test, (stored.images, stored.labels), stored.val)
    )
    assert images is not None
    return replace(stored, images=images[0], test=test, val=val)


def _black_and_white(images: np.ndarray, limit: np.ndarray | int = HALF - 1) -> np.ndarray:
    return np.where(images > limit, np.uint8(255), np.uint8(0))


def _tensor(images: np.ndarray, device: str | torch.device) -> Tensor:
    """Images on a device; those in a file stay there, and only their batches go to it."""
    if not is_mapped(images):
        return torch.from_numpy(images).to(device)
    with warnings.catch_warnings():
        # Nothing here writes into images, which torch cannot know.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def _digest(parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for split, arrays in parts.items():
        digest.update(split.encode())
        for array in arrays:
            for rows in in_shards(array):
                digest.update(np.ascontiguousarray(rows).data)
    # A tracking server keeps at most 36 characters of a dataset's digest.
    return digest.hexdigest()[:32]
