"""Paths as others may see them."""

from pathlib import Path

KINDS = ("npz:", "npy:", "folder:", "parquet:")
"""What names datasets by their paths."""


def public(value: str) -> str:
    """Cut the folders off an absolute path, alone or in a dataset's name: others read it on other machines."""
    kind, colon, path = value.partition(":") if value.startswith(KINDS) else ("", "", value)
    return kind + colon + Path(path).name if Path(path).is_absolute() else value
