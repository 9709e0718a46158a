"""Paths as others may see them."""

from pathlib import Path


def public(value: str) -> str:
    """Cut the folders off an absolute path, alone or in a dataset's name: others read it on other machines."""
    kind, colon, path = value.rpartition(":") if value.startswith("npz:") else ("", "", value)
    return kind + colon + Path(path).name if Path(path).is_absolute() else value
