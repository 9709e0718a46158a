"""The base of every config: one definition of a field is its flag, its parameter, its search range and its JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError, field_validator

from elbolab.config.limits import refuse_unstorable
from elbolab.config.ranges import distribution_of
from elbolab.support.errors import UserError, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, also within containers: numbers of numpy, pandas and torch are Python's own."""
    value = value.tolist() if hasattr(value, "tolist") else value
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple() | Iterator():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
    return value


Value = Annotated[JsonValue, BeforeValidator(_plain)]
"""A value of a field whose type is not known here; whoever tries values often takes them from an array."""
Values = Annotated[tuple[Value, ...], BeforeValidator(_plain)]
"""Several of them."""


def split_names(given: Any) -> Any:
    """Names that are given one by one or, as `mlflow run -P run=ID,ID` gives them, separated by commas."""
    items = [given] if isinstance(given, str) else given
    if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
        return tuple(name for item in items for name in item.split(","))
    return given


SPLIT = BeforeValidator(split_names)
Names = Annotated[tuple[str, ...], SPLIT]
"""Several names; as a parameter, and as one text, they are separated by commas."""


class Settings(BaseModel):
    """A frozen, flat set of typed fields; the docstring under a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        # As a path it would be the working folder, which an unset shell variable hardly means.
        if isinstance(value, str) and not value:
            raise ValueError("should not be empty")
        return value

    @field_validator("*")
    @classmethod
    def _within_limits(cls, value: Any) -> Any:
        for item in value if isinstance(value, tuple) else (value,):
            refuse_unstorable(item)
        return value

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate ``values``; raises UserError naming every wrong field, its value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(cls.explain(error)) from None

    @classmethod
    def explain(cls, error: ValidationError) -> str:
        """What is wrong with each field of values that are no settings of this class."""
        alike: dict[tuple[Any, ...], list[Any]] = {}
        problems = error.errors()
        for problem in problems:
            # Every type of a field that may have several has its own problem with one value.
            known = problem["loc"][:1] if problem["type"] not in ("extra_forbidden", "missing") else problem["loc"]
            alike.setdefault((known, id(problem["input"])), []).append(problem)
        return "; ".join(map(cls._explain, alike.values()))

    @classmethod
    def _explain(cls, alike: list[Any]) -> str:
        problem = alike[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        within = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = f"; there are: {', '.join(cls.model_fields)}" if within == name else ""
            return f"{within} is not a parameter{known}"
        if problem["type"] == "missing":
            return f"{within} must be given" + (f": {cls.model_fields[name].description}" if within == name else "")
        messages = [one["msg"].removeprefix("Value error, ").removeprefix("Input ") for one in alike]
        messages = [message.partition(", unable to parse")[0] for message in messages]
        message = ", or ".join(dict.fromkeys(messages))
        if not name:
            return message
        field = cls.model_fields.get(name)
        known = field is not None and not field.is_required() and field.default_factory is None
        default = f" (default {field.default})" if field is not None and known and field.default is not None else ""
        return f"{name}={shown(problem['input'])}: {message}{default}"

    def params(self) -> dict[str, str]:
        """The fields that are set, as the strings that a tracking server keeps."""
        found = self.model_dump(mode="json")
        for key, field in type(self).model_fields.items():
            if SPLIT in field.metadata:
                found[key] = ",".join(found[key] or ()) or None
        return {key: str(value) for key, value in found.items() if value is not None}

    def changes(self) -> dict[str, str]:
        """Those of ``params`` that are not their defaults."""
        defaults = type(self)().params()
        return {key: value for key, value in self.params().items() if value != defaults.get(key)}

    @classmethod
    def search_range(cls, name: str) -> "BaseDistribution":
        """The range in which a study searches the field ``name``; raises UserError where it declares none."""
        if (field := cls.model_fields.get(name)) is None:
            raise UserError(f"{name} is not a parameter; there are: {', '.join(cls.model_fields)}")
        if (found := distribution_of(field.metadata)) is not None:
            return found
        raise UserError(f"{name} declares no search range; give it one where {cls.__name__} defines it")
