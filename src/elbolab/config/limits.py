"""What every setting is held to beside its own bounds: what torch, a database and a file system can keep."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

# Every random generator that is seeded here takes a seed of 32 bits, and no size or count is near it.
LARGEST_INT = 2**32 - 1
# What 32-bit floats hold, with room for a product.
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-30, 1e30
# A tracking server cuts longer parameters, and no file system has longer paths.
LONGEST_TEXT = 4000
# Two layers of this width are 0.4 GB of weights.
WIDEST = 10_000


def refuse_unstorable(value: Any) -> None:
    """Raise ValueError for a number or a text that cannot be kept."""
    match value:
        case int() if abs(value) > LARGEST_INT:
            raise ValueError(f"should be at most {LARGEST_INT}")
        case float() if value and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
            raise ValueError(f"should be 0 or from {SMALLEST_FLOAT:g} to {LARGEST_FLOAT:g}")
        case str() | Path():
            text = str(value)
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"should have at most {LONGEST_TEXT} characters")
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("should be Unicode without NUL characters")


def expanded(path: Path) -> Path:
    """The path with ~ and ~USER as home folders, which no shell puts there within `--out=~/report`."""
    # Path.expanduser raises for a user that does not exist, where a shell leaves the name as it is.
    return Path(os.path.expanduser(path))


# Of a file or folder on every usual file system.
LONGEST_NAME = 255


def _refuse_long(path: Path) -> None:
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"should have no name of more than {LONGEST_NAME} bytes, and one has {longest}")


def _writable_folder(path: Path) -> Path:
    path = expanded(path)
    _refuse_long(path)
    # Known before the hours of work whose result goes there.
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"should be where files can be written, but {there} is no folder or not to be written")
    return path


def _writable_file(path: Path) -> Path:
    path = expanded(path)
    if os.path.isdir(path):
        raise ValueError("should be a file, not a folder")
    _refuse_long(path)
    _writable_folder(path.parent)
    return path


WritableFolder = Annotated[Path, AfterValidator(_writable_folder)]
WritableFile = Annotated[Path, AfterValidator(_writable_file)]
