"""A dataset as it is stored, whatever it is read from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
