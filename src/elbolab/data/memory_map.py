"""Images that memory does not hold: decoded once into a file, and read from there page by page."""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from elbolab.support.atomic_files import replace
from elbolab.support.errors import UserError

# Of one shard, in which images are decoded, copied and digested.
SHARD_BYTES = 64 * 2**20
# A file that is being written changes more often.
ABANDONED_SECONDS = 24 * 3600
# Where systems keep what their control groups may have.
GROUPS = Path("/sys/fs/cgroup")


def memory() -> int:
    """The bytes of memory that this process may have: the machine's, or the limit of its container or control group."""
    # Without it where a registered model is loaded, which reads no images.
    import psutil

    found, groups = [psutil.virtual_memory().total], {GROUPS / "memory.max", GROUPS / "memory/memory.limit_in_bytes"}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = GROUPS / line[3:].strip("/")
                groups |= {group / "memory.max" for group in (own, *own.parents) if GROUPS in group.parents}
    for file in groups:
        # Without a limit version 2 says max, and version 1 a number beyond all memory.
        with suppress(OSError, ValueError):
            found.append(int(file.read_text()))
    return min(found)


def most_in_memory() -> int:
    """The bytes of images above which they are read from a file: half of the memory."""
    return memory() // 2


def in_shards(array: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of an array, about ``SHARD_BYTES`` at a time."""
    rows = max(1, SHARD_BYTES // max(1, array[:1].nbytes))
    return (array[start : start + rows] for start in range(0, len(array), rows))


def is_mapped(images: np.ndarray) -> bool:
    """Whether images are read from a file."""
    return isinstance(images, np.memmap)


class Store:
    """Where the images of one dataset are put: in memory, or, where they are more than half of it, in ``folder``.

    The file is named by a digest of ``source``, has its name only when it is whole, and is there the next time. As a
    context it removes what was not kept. Raises UserError where the folder cannot be written or is too full.
    """

    def __init__(self, what: str, folder: Path, *source: object) -> None:
        self._what = what
        self.file = folder / "mapped" / f"{hashlib.sha256(repr(source).encode()).hexdigest()[:32]}.npy"
        self._parts: list[Path] = []

    @classmethod
    def of_files(cls, what: str, folder: Path, files: Sequence[Path], *how: object) -> Self:
        """That of images read from these files, as they are now."""
        with suppress(OSError):
            found = [(os.path.abspath(file), os.stat(file)) for file in files]
            # Whoever sets a file's time back leaves the time of its change.
            states = [(file, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) for file, now in found]
            return cls(what, folder, *states, *how)
        # Which of them cannot be read is told where it is opened.
        return cls(what, folder, time.time_ns(), os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.unlink(missing_ok=True)

    def kept(self) -> np.ndarray | None:
        """The images that were kept before, where memory does not hold them."""
        if not os.path.isfile(self.file) or os.path.getsize(self.file) <= most_in_memory():
            return None
        with suppress(OSError, ValueError):
            found = np.load(self.file, mmap_mode="r", allow_pickle=False)
            self._say(found.nbytes)
            return found
        return None

    def allocate(self, shape: tuple[int, ...], always: bool = False) -> np.ndarray:
        """Room for images uint8 of this shape (N, C, H, W): memory, or where that is too little (or ``always``) a file
        that has no name yet.
        """
        wanted = int(np.prod(shape, dtype=object))
        if wanted <= most_in_memory() and not always:
            return np.empty(shape, np.uint8)
        folder = self.file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("*.part"):
                with suppress(FileNotFoundError):
                    if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
                        old.unlink()
            handle, name = tempfile.mkstemp(".part", self.file.stem, folder)
            os.close(handle)
            self._parts.append(Path(name))
        except OSError as error:
            raise UserError(
                f"{self._what}: {folder} cannot be written: {error.strerror}; {self._need(wanted)}"
            ) from error
        # To write into a file whose disk is full kills the process.
        if wanted > (free := shutil.disk_usage(folder).free):
            raise UserError(f"{self._what}: {folder} has {free / 1e9:.1f} GB left; {self._need(wanted)}")
        if not always and len(self._parts) == 1:
            self._say(wanted)
        return np.lib.format.open_memmap(name, "w+", np.uint8, shape)

    def widened(self, images: np.ndarray, rows: int, channels: int) -> np.ndarray:
        """Room for images of more channels, with those of the first ``rows`` images in each."""
        wider = self.allocate((len(images), channels, *images.shape[2:]))
        start = 0
        for part in in_shards(images[:rows]):
            wider[start : start + len(part)] = part
            start += len(part)
        return wider

    def keep(self, images: np.ndarray) -> np.ndarray:
        """The images, now to be read only; where they are in a file it gets its name."""
        if not isinstance(images, np.memmap):
            return images
        images.flush()
        replace(Path(str(images.filename)), self.file)
        return np.load(self.file, mmap_mode="r", allow_pickle=False)

    def _need(self, wanted: int) -> str:
        return (
            f"its images, {wanted / 1e9:.1f} GB, are more than half of the memory and need as much on a disk; name a "
            "folder by --data-dir or ELBOLAB_DATA"
        )

    def _say(self, size: int) -> None:
        print(
            f"elbolab: {self._what} has {size / 1e9:.2f} GB of images, more than half of {memory() / 1e9:.2f} GB of "
            f"memory; they are read from {self.file}",
            file=sys.stderr,
            flush=True,
        )


def take(
    images: np.ndarray, rows: np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None = None, how: str = ""
) -> np.ndarray:
    """``images[rows]``, each pixel by ``change``; of images in a file in another file, in the order of ``rows``.

    ``how`` tells apart what the same rows of that file may become.
    """
    if not isinstance(images, np.memmap):
        return images[rows] if change is None else change(images[rows])
    source = Path(str(images.filename))
    with Store(
        str(source), source.parent.parent, source.name, hashlib.sha256(rows.tobytes()).hexdigest(), how
    ) as store:
        if os.path.isfile(store.file):
            return np.load(store.file, mmap_mode="r", allow_pickle=False)
        taken = store.allocate((len(rows), *images.shape[1:]), always=True)
        each = max(1, SHARD_BYTES // images[:1].nbytes)
        for start in range(0, len(rows), each):
            shard = images[rows[start : start + each]]
            taken[start : start + each] = shard if change is None else change(shard)
        return store.keep(taken)
