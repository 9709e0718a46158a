"""Datasets as stratified splits of uint8 images in memory, cut into batches that carry their images' indices."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbolab.config.limits import expanded
from elbolab.data.own_files import OWN, refuse_size
from elbolab.data.readers import DATASETS
from elbolab.data.stored import Arrays, Pair
from elbolab.support.errors import UserError

# Of data without classes.
EXAMPLES = 10
# Of which no pixel is as bright, images are dark or counted in another unit.
HALF = 128


@dataclass(frozen=True)
class Batch:
    """B images ``x`` (B, C, H, W) in [0, 1], their labels ``y`` (B,), and where they stand.

    ``index`` (B,) counts in the dataset, ``split`` names the split, ``digest`` the data that both refer to.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    split: str
    digest: str

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor) -> "Batch":
        """The batch of these of its images."""
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    def with_x(self, x: Tensor) -> "Batch":
        """The same batch with other pixels."""
        return replace(self, x=x)


@dataclass(frozen=True)
class Split:
    """One split on one device: images uint8 (N, C, H, W), labels int64 (N,), index in the dataset int64 (N,)."""

    name: str
    images: Tensor
    labels: Tensor
    index: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows of the split."""
        rows = rows.to(self.images.device)
        x = self.images.index_select(0, rows).float().div_(255)
        y, index = self.labels.index_select(0, rows), self.index.index_select(0, rows)
        return Batch(x, y, index, self.name, self.digest)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Every image once, ``size`` at a time, in an order drawn from ``generator``, else as they stand."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for rows in order.split(size):
            yield self.batch(rows)

    def stratified(self, size: int, seed: int) -> Tensor:
        """Rows of ``size`` images (all, where the split has fewer), each class in its proportion; (min(size, N),)."""
        return torch.from_numpy(stratified_order(self.labels.cpu().numpy(), seed)[:size])

    def examples(self) -> Batch:
        """The first image of each class, in the order of the classes; of one class the first ``EXAMPLES`` images."""
        _, first = np.unique(self.labels.cpu().numpy(), return_index=True)
        return self.batch(torch.from_numpy(first) if len(first) > 1 else torch.arange(len(self))[:EXAMPLES])


@dataclass(frozen=True)
class DataSpec:
    """What a model needs to know of its data: image shape, classes, size of the splits, and the digest of it all.

    Images without labels are of one class.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    val: int
    digest: str


@dataclass(frozen=True)
class Data:
    """The train, validation and test splits of one dataset, the files that it was read from, its classes' names."""

    name: str
    train: Split
    val: Split
    test: Split
    spec: DataSpec
    files: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def without_test(self) -> "Data":
        """The same data with an empty test split: what a search may see."""
        none = {name: getattr(self.test, name)[:0] for name in ("images", "labels", "index")}
        return replace(self, test=replace(self.test, **none))


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of ``labels`` (N,) in which every run of neighbours holds each class in its proportion.

    Each image gets its rank among its class, drawn at random and scaled to (0, 1); sorting by it makes every slice
    stratified to within one image a class.
    """
    rng = np.random.default_rng(seed)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), rank))


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
        stored = OWN[name](expanded(Path(path)), image_size)
    white = stored.white or 255

    def scaled(images: np.ndarray) -> np.ndarray:
        brightest = int(images.max())
        if brightest > white:
            raise UserError(f"{dataset} has white={white}, but a pixel of {brightest}; white must be at least that")
        if stored.white is None and brightest < HALF:
            said = f"white={brightest}, or white=255 where they are so dark" if brightest else "white=255"
            beside = f", or save what is white beside images and labels, as {said}" if name == "npz" else ""
            raise UserError(
                f"{dataset} has no pixel above {brightest}, but 255 is white; scale the images to 0 to 255{beside}"
            )
        return images if white == 255 else np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[images]

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
    stored = _binarised(read(dataset, data_dir, image_size), binarise, split_seed)
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
            parts[split], order = _of((stored.images, stored.labels), order[:size]), order[size:]
        else:
            if size > (most := len(own[1])):
                raise UserError(f"{split}_size={size} must be at most {most}, the images that {dataset} has for it")
            parts[split] = _of(own, stratified_order(own[1], split_seed)[:size], others)
            others += most
    if (train_size := train_size or len(order)) > len(order):
        raise UserError(
            f"train_size={train_size} must be at most {len(order)}, the images of {dataset} that no other split has"
        )
    parts = {
        "train": _of((stored.images, stored.labels), order[:train_size]),
        "val": parts["val"],
        "test": parts["test"],
    }
    content = _digest(parts)
    splits = {
        split: Split(
            split,
            *(torch.from_numpy(array).to(device) for array in (images, labels.astype(np.int64), index)),
            digest=content,
        )
        for split, (images, labels, index) in parts.items()
    }
    classes = max(int(pair[1].max()) for pair in ((stored.images, stored.labels), stored.val, stored.test) if pair) + 1
    spec = DataSpec(stored.images.shape[1:], classes, train_size, len(splits["val"]), content)
    return Data(dataset, **splits, spec=spec, files=stored.files, names=stored.names)


def _of(pair: Pair, rows: np.ndarray, before: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images, labels and indices of these rows, ``before`` which the dataset has so many other images."""
    images, labels = pair
    return images[rows], labels[rows], rows + before


def _binarised(stored: Arrays, how: str, seed: int) -> Arrays:
    """The images black and white: white with the probability of their grey, or above a half."""
    if how == "no":
        return stored
    # Of another stream than the split's.
    rng = np.random.default_rng([seed, 1])

    def black_and_white(images: np.ndarray) -> np.ndarray:
        # A draw from 0 to 254 is below v with probability v / 255.
        limit = rng.integers(0, 255, images.shape, np.uint8) if how == "once" else np.uint8(127)
        return np.where(images > limit, np.uint8(255), np.uint8(0))

    # Drawn in this order since before a dataset could have a validation split of its own.
    test, images, val = (
        pair and (black_and_white(pair[0]), pair[1])
        for pair in (stored.test, (stored.images, stored.labels), stored.val)
    )
    assert images is not None
    return replace(stored, images=images[0], test=test, val=val)


def _digest(parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for split, arrays in parts.items():
        digest.update(split.encode())
        for array in arrays:
            digest.update(array.tobytes())
    # A tracking server keeps at most 36 characters of a dataset's digest.
    return digest.hexdigest()[:32]
