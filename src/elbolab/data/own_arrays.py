"""What a user's own images and labels are held to, whatever they are read from; and how they are put together."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elbolab.data.memory_map import Store, in_shards, is_mapped
from elbolab.data.stored import Arrays, Pair, white_table
from elbolab.support.errors import UserError, shown

SPLITS = ("train", "val", "test")
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Streamed:
    """An array that is read some rows at a time, each time anew."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Iterator[np.ndarray]]


Images = np.ndarray | Streamed


def _shards(images: Images) -> Iterator[np.ndarray]:
    return images.read() if isinstance(images, Streamed) else in_shards(images)


def from_arrays(
    what: str,
    parts: Mapping[str, tuple[Images, np.ndarray | None]],
    white: np.ndarray | None = None,
    files: tuple[Path, ...] = (),
    folder: Path = Path(),
) -> Arrays:
    """The images and labels of the splits that ``parts`` has, train always; raises UserError naming ``what``.

    Images that memory does not hold are put into a file in ``folder``, with 255 as white.
    """
    if white is not None and (white.dtype.kind not in "iu" or white.shape != () or not 1 <= white <= 255):
        raise UserError(f"{what} has white={shown(white.tolist())}; it must be one integer from 1 to 255")
    said = None if white is None else int(white)
    shapes = {split: _shape(f"{what} {_named(split, parts)}", one) for split, (one, _) in parts.items()}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        several = ", ".join(f"{split} {shape[1:]}" for split, shape in shapes.items())
        raise UserError(f"{what} has images of several shapes: {several}; all must be of one")
    with Store.of_files(what, folder, files) as store:
        if (images := store.kept()) is not None:
            said = 255
        else:
            images, said = _put_together(what, parts, shapes, said, store)
    whole, start = dict[str, np.ndarray](), 0
    for split, shape in shapes.items():
        whole[split] = images[start : start + shape[0]]
        start += shape[0]
    return assembled(what, {split: (whole[split], labels) for split, (_, labels) in parts.items()}, said, files)


def _put_together(
    what: str,
    parts: Mapping[str, tuple[Images, np.ndarray | None]],
    shapes: Mapping[str, tuple[int, ...]],
    white: int | None,
    store: Store,
) -> tuple[np.ndarray, int | None]:
    """All images uint8 (N, C, H, W), split after split, and what their white is, where that is known."""
    highs = {split: _highest(f"{what} {_named(split, parts)}", one) for split, (one, _) in parts.items()}
    # Of floats from 0 to 1 it is known what white is.
    from_0_to_1 = [split for split, (one, _) in parts.items() if one.dtype.kind == "f" and highs[split] <= 1]
    scaled = len(from_0_to_1) == len(parts)
    if from_0_to_1 and not scaled:
        raise UserError(
            f"{what} has floats from 0 to 1 in {', '.join(from_0_to_1)} and other pixels in the other splits; bring "
            "all to one range"
        )
    if scaled and white not in (None, 1):
        raise UserError(f"{what} has white={white} beside floats from 0 to 1, where white is 1; leave it out")
    white = 255 if scaled else white
    shape = next(iter(shapes.values()))[1:]
    images, start, table = store.allocate((sum(shape[0] for shape in shapes.values()), *shape)), 0, None
    if is_mapped(images):
        # Once and for all, since later this would be another file.
        table = None if scaled else white_table(what, round(max(highs.values())), white)
        white = 255
    for one, _ in parts.values():
        for part in _shards(one):
            laid = part.reshape(len(part), *part.shape[1:3], -1).transpose(0, 3, 1, 2) if _is_last(one) else part
            bytes_ = np.rint(laid * 255 if scaled else laid) if laid.dtype.kind == "f" else laid
            bytes_ = bytes_.astype(np.uint8)
            images[start : start + len(part)] = bytes_ if table is None else table[bytes_]
            start += len(part)
    return store.keep(images), white


def assembled(
    what: str,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    white: int | None = None,
    files: tuple[Path, ...] = (),
) -> Arrays:
    """A dataset of the images uint8 (N, C, H, W) of its splits, train always, and of their labels; raises UserError
    where labels are wrong, or images too few.
    """
    whole = {split: images for split, (images, _) in parts.items()}
    labels, names = _labels(what, {split: one for split, (_, one) in parts.items()}, whole)
    pairs: dict[str, Pair] = {split: (whole[split], labels[split]) for split in whole}
    count = len(whole["train"])
    if count < (least := 1 + ("val" not in pairs) + ("test" not in pairs)):
        raise UserError(f"{what} has {count} images; it must have at least {least}, one for each split")
    tenth = max(1, count // 10)
    return Arrays(
        *pairs["train"],
        pairs.get("test"),
        len(whole["val"]) if "val" in whole else tenth,
        len(whole["test"]) if "test" in whole else tenth,
        white,
        files,
        pairs.get("val"),
        names,
    )


def _named(split: str, parts: Iterable[str]) -> str:
    return "images" if list(parts) == ["train"] else f"{split} images"


def _is_last(images: Images) -> bool:
    """Whether channels are the last dimension, or none."""
    return len(images.shape) == 3 or images.shape[-1] in CHANNELS


def _shape(what: str, images: Images) -> tuple[int, ...]:
    """(N, C, H, W) of images; raises UserError where they are none."""
    shape = images.shape
    if len(shape) not in (3, 4) or 0 in shape or not (_is_last(images) or shape[1] in CHANNELS):
        raise UserError(
            f"{what} have shape {shape}; allowed: (N,H,W), (N,H,W,C) and (N,C,H,W) with C 1, 3 or 4, and N, H and W "
            "from 1; reshape what is flat"
        )
    if images.dtype.kind not in "iufb":
        raise UserError(f"{what} have dtype {images.dtype}; they must be numbers")
    if not _is_last(images):
        return shape
    return (shape[0], shape[3] if len(shape) == 4 else 1, *shape[1:3])


def _highest(what: str, images: Images) -> float:
    """The brightest pixel; raises UserError where pixels are not from 0 to 255."""
    ends = [(part.min(), part.max()) for part in _shards(images)]
    # NaN is in no order, and stays in numpy's least and largest.
    low, high = np.min([low for low, _ in ends]), np.max([high for _, high in ends])
    if not (low >= 0 and high <= 255):
        raise UserError(
            f"{what} have dtype {images.dtype} and go from {low} to {high}; they must go from 0 to 255, or as floats "
            f"from 0 to 1{': (x + 1) / 2 of these' if low >= -1 and high <= 1 else ''}"
        )
    return float(high)


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


def named_classes(what: str, stored: Arrays, names: Sequence[str]) -> Arrays:
    most = max(int(pair[1].max()) for pair in ((stored.images, stored.labels), stored.val, stored.test) if pair)
    if most < len(names):
        return replace(stored, names=tuple(names))
    print(
        f"elbolab: {what} names {len(names)} classes, but has a label {most}; the names are left out", file=sys.stderr
    )
    return stored
