"""Files that outlive the machine's sudden end."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, before anything else is done."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(part: Path, path: Path) -> None:
    """Give a file that is written its name; whenever the machine dies, ``path`` is the old file or the new one."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)
