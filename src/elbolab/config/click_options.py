"""From config fields to the command line: a flag for each field, and the command that a person types."""

import shlex
from typing import Any

import click
from pydantic.errors import PydanticInvalidForJsonSchema

from elbolab.config.base import Settings
from elbolab.support.errors import UserError, reason

# What a field's JSON schema says, as a person writes it, and as click does.
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
REMEDY = "take int, float, bool, str, Path, a Literal, or a tuple of one of them"
TYPES = {"integer": click.INT, "number": click.FLOAT, "boolean": click.BOOL}


def options_of(settings: type[Settings]) -> list[click.Parameter]:
    """A click option for each field: `--latent-dim` and `--latent_dim`, with its type, bounds, default and help."""
    options: list[click.Parameter] = []
    try:
        properties = settings.model_json_schema().get("properties", {})
    except PydanticInvalidForJsonSchema as error:
        raise UserError(f"{settings.__name__} has a field that no flag takes: {reason(error)}; {REMEDY}") from error
    for name, schema in properties.items():
        field = settings.model_fields[name]
        kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
        if not kinds or not all("type" in kind for kind in kinds):
            raise UserError(f"{settings.__name__}.{name} is of a type that no flag takes; {REMEDY}")
        many = kinds[0]["type"] == "array"
        # `--sync` says true, and `--sync true` is how `mlflow run -P sync=true` says it.
        is_switch = kinds[0]["type"] == "boolean"
        alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_switch else {}
        notes = [f"{sign} {kind[key]}" for kind in kinds for key, sign in BOUNDS.items() if key in kind]
        if not (field.default is None or field.default_factory or many or field.is_required()):
            notes.append(f"default: {field.default}")
        options.append(
            click.Option(
                list(dict.fromkeys([name, _flag(name), f"--{name}"])),
                type=_click_type(kinds[0]) if len(kinds) == 1 else click.STRING,
                multiple=many,
                **alone,
                default=() if many else None,
                help=" ".join([field.description or "", f"[{'; '.join(notes)}]" if notes else ""]),
            )
        )
    return options


def command_line(command: str, /, *arguments: str, **fields: Any) -> str:
    """What a person types for ``command`` with these values of fields.

    A tuple is a flag an item, True a flag alone, None is left out.
    """
    words = ["elbolab", command, *arguments]
    for name, value in fields.items():
        for item in value if isinstance(value, tuple) else (value,):
            words += [] if item is None else [_flag(name)] if item is True else [_flag(name), str(item)]
    return shlex.join(words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _click_type(schema: dict[str, Any]) -> click.ParamType:
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return click.Choice(choices)
    if schema.get("format") == "path":
        # As text: an empty one is refused, and would be the working folder as a path.
        return click.Path()
    return TYPES.get(schema["type"], click.STRING)
