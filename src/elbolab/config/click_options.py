"""From config fields to the command line: a flag for each field, and the command that a person types."""

import shlex
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from elbolab.config.base import Settings


def options_of(settings: type[Settings]) -> list[click.Parameter]:
    """A click option for each field: `--latent-dim` and `--latent_dim`, with its type, bounds, default and help."""
    options: list[click.Parameter] = []
    for name, field in settings.model_fields.items():
        kinds = (
            get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
        )
        many = get_origin(kinds[0]) is tuple
        # `--sync` says true, and `--sync true` is how `mlflow run -P sync=true` says it.
        alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kinds[0] is bool else {}
        notes = _bounds([*field.metadata, *(item for kind in kinds for item in _metadata(kind))])
        if not (field.default is None or field.default_factory or many or field.is_required()):
            notes.append(f"default: {field.default}")
        kinds = [_plain(kind) for kind in kinds if kind is not NoneType]
        options.append(
            click.Option(
                list(dict.fromkeys([name, _flag(name), f"--{name}"])),
                type=_click_type(kinds),
                multiple=many,
                **alone,
                default=() if many else None,
                help=" ".join([field.description or "", f"[{'; '.join(notes)}]" if notes else ""]),
            )
        )
    return options


def command_line(command: str, /, *arguments: str, **fields: Any) -> str:
    """What a person types for ``command`` with these values of fields: a tuple is a flag an item, None is left out."""
    words = ["elbolab", command, *arguments]
    for name, value in fields.items():
        for item in value if isinstance(value, tuple) else (value,):
            words += [] if item is None else [_flag(name), str(item)]
    return shlex.join(words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metadata(kind: Any) -> list[Any]:
    """What ``Annotated[int, Field(gt=0)]`` says of its ``int``."""
    return [item for part in getattr(kind, "__metadata__", ()) for item in getattr(part, "metadata", [part])]


def _bounds(metadata: list[Any]) -> list[str]:
    """The bounds among a field's metadata, as a person writes them."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [f"{sign} {getattr(item, name)}" for item in metadata for name, sign in signs.items() if hasattr(item, name)]


def _plain(kind: Any) -> Any:
    """``Annotated[int, Gt(0)]`` as ``int``."""
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _click_type(kinds: list[Any]) -> click.ParamType:
    if len(kinds) > 1 or get_origin(kinds[0]) is tuple:
        return click.STRING
    if get_origin(kinds[0]) is Literal:
        return click.Choice(get_args(kinds[0]))
    return {int: click.INT, float: click.FLOAT, bool: click.BOOL, Path: click.Path(path_type=Path)}.get(
        kinds[0], click.STRING
    )
