"""What a disk may hold after the machine has stopped: only what was synced is sure, and only syncs keep an order."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Of a folder its entries, of a file its bytes.
Tree = dict[str, "Tree | bytes"]


class Disk:
    """A folder whose file operations are watched: ``images`` are the trees that a power cut may leave, each once.

    POSIX promises the bytes of a file once it is synced, and its name once its folder is. At each operation a cut may
    leave nothing that was not synced, or all names with no bytes that were not synced (names that were reordered before
    bytes), or all of both. ``checked`` says what must hold of the images from then on.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {root.stat().st_ino: {}}
        self.images: list[tuple[Tree, Any]] = []
        self.checked: Callable[[], Any] = lambda: None
        sync = os.fsync
        patch.setattr(os, "fsync", lambda handle: self._synced(handle, sync))
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def done(path: Any, *arguments: Any, **options: Any) -> Any:
            found = operation(path, *arguments, **options)
            if "dir_fd" in options or str(path).startswith(str(self.root)):
                self.cut()
            return found

        return done

    def _synced(self, handle: int, sync: Callable[[int], None]) -> None:
        sync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_relative_to(self.root):
            inode = os.fstat(handle).st_ino
            if path.is_dir():
                self._names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
            else:
                self._bytes[inode] = path.read_bytes()
            self.cut()

    def cut(self) -> None:
        """The machine may stop now."""
        wanted = self.checked()
        for image in (self._sure(self.root), self._named(self.root), self._whole(self.root)):
            if (image, wanted) not in self.images[-6:]:
                self.images.append((image, wanted))

    def _sure(self, folder: Path) -> Tree:
        """What was synced, in folders that still are what they were."""
        names = self._names.get(folder.stat().st_ino, {})
        paths = {path.stat().st_ino: path for path in self.root.rglob("*")}
        found: Tree = {}
        for name, inode in names.items():
            if (path := paths.get(inode)) is not None and path.is_dir():
                found[name] = self._sure(path)
            else:
                found[name] = self._bytes.get(inode, b"")
        return found

    def _named(self, folder: Path) -> Tree:
        """Every name, and the bytes that were synced."""
        return {
            path.name: self._named(path) if path.is_dir() else self._bytes.get(path.stat().st_ino, b"")
            for path in folder.iterdir()
        }

    def _whole(self, folder: Path) -> Tree:
        return {path.name: self._whole(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


def laid_out(images: list[tuple[Tree, Any]], where: Path) -> Iterator[tuple[Path, Any]]:
    """Each image as a folder, with what must hold of it."""
    seen: list[Tree] = []
    for image, wanted in reversed(images):
        # Of equal images the last has the most that must hold.
        if image in seen:
            continue
        seen.append(image)
        shutil.rmtree(where, ignore_errors=True)
        _write(image, where)
        yield where, wanted


def _write(tree: Tree, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, what in tree.items():
        if isinstance(what, dict):
            _write(what, folder / name)
        else:
            (folder / name).write_bytes(what)
