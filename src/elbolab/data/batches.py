"""Splits of uint8 images, cut into batches that carry their images' indices."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Of data without classes.
EXAMPLES = 10


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
    """One split: images uint8 (N, C, H, W), labels int64 (N,), index in the dataset int64 (N,), on one device.

    Images that memory does not hold are in a file, mapped into the CPU's memory; batches are on the device of labels.
    """

    name: str
    images: Tensor
    labels: Tensor
    index: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows of the split."""
        x = self.images.index_select(0, rows.to(self.images.device)).to(self.labels.device).float().div_(255)
        rows = rows.to(self.labels.device)
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
