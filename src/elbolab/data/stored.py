"""A dataset as it is stored, whatever it is read from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elbolab.support.errors import UserError

# Of which no pixel is as bright, images are dark or counted in another unit.
HALF = 128

Pair = tuple[np.ndarray, np.ndarray]
"""Images uint8 (N, C, H, W) and their labels (N,)."""


@dataclass(frozen=True)
class Arrays:
    """A dataset as it is stored: images uint8 (N, C, H, W), labels (N,), and splits of its own where it has them.

    Images without labels are of one class, 0. Of a split that it does not have ``val_size`` or ``test_size`` images are
    held out. ``white`` is the pixel that stands for 1 where that is said; otherwise it is 255. ``files`` are those that
    they were read from: while these are as they were, a process need not read them again; without any it always does.
    ``names`` are those of the classes, in the order of their labels, where they have any.
    """

    images: np.ndarray
    labels: np.ndarray
    test: Pair | None
    val_size: int
    test_size: int
    white: int | None = None
    files: tuple[Path, ...] = ()
    val: Pair | None = None
    names: tuple[str, ...] = ()


def white_table(what: str, brightest: int, white: int | None, is_npz: bool = True) -> np.ndarray | None:
    """What every pixel from 0 to ``white`` becomes where 255 is to be white, None where nothing changes.

    Raises UserError where a pixel is brighter than white, and where all are so dark that white may be another.
    """
    if brightest > (white or 255):
        raise UserError(f"{what} has white={white}, but a pixel of {brightest}; white must be at least that")
    if white is None and brightest < HALF:
        said = f"white={brightest}, or white=255 where they are so dark" if brightest else "white=255"
        beside = f", or save what is white beside images and labels, as {said}" if is_npz else ""
        raise UserError(
            f"{what} has no pixel above {brightest}, but 255 is white; scale the images to 0 to 255{beside}"
        )
    return None if white in (None, 255) else np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
