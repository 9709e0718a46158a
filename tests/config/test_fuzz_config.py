"""Settings under any value: what their bounds say, a round trip for all that is valid, one line for all that is not."""

import json
import math
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.projects._project_spec import load_project

from elbolab.config.click_options import options_of
from elbolab.config.limits import LARGEST_FLOAT, LARGEST_INT, SMALLEST_FLOAT, WIDEST
from elbolab.config.schema import (
    CompareConfig,
    EvaluateConfig,
    ExploreConfig,
    MainConfig,
    PromoteConfig,
    ResumeConfig,
    Settings,
    StudyConfig,
)
from elbolab.models import MODELS
from elbolab.support.errors import UserError

# Whose parameters a run keeps.
TRACKED: list[type[Settings]] = [*(model.Config for model in MODELS.values()), EvaluateConfig, MainConfig]
ALL = [*TRACKED, CompareConfig, ExploreConfig, StudyConfig, PromoteConfig, ResumeConfig]
FIELDS = [(kind, name) for kind in ALL for name in kind.model_fields]

PLANTED = [
    "$(touch planted)",
    "`touch planted`",
    "; touch planted;",
    "&& touch planted",
    "'",
    '"',
    "\n",
    "\\",
    "{0}",
    "*",
]
TEXT = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.sampled_from(PLANTED), max_size=4)
TEXT = TEXT.map("".join).filter(bool)
# Fields that take less text than their type says.
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "out": TEXT.map(lambda text: Path(f"new {text}")),
    "alias": st.sampled_from(["champion", "best-of_3", "A"]),
    "name": TEXT.filter(lambda text: not set("/:") & set(text) and text.strip() not in ("", ".", "..")),
    # More are too many numbers for a full covariance.
    "latent_dim": st.integers(1, 1000),
    # One distribution is no path.
    "ais_distributions": st.just(0) | st.integers(2, LARGEST_INT),
    "latent_init": st.sampled_from(["zeros", "normal", "pca"]) | st.from_regex(r"encoder:\w+", fullmatch=True),
    "net": st.sampled_from(["conv", "mlp"]) | TEXT.map(lambda text: f"{text}.py:Nets"),
    "start": st.from_regex(r"[a-zA-Z0-9_]+", fullmatch=True),
}


@cache
def alternatives(kind: type[Settings], name: str) -> list[dict[str, Any]]:
    """What pydantic's own JSON schema says that a field may be."""
    schema = kind.model_json_schema()["properties"][name]
    return schema.get("anyOf", [schema])


def limits(schema: dict[str, Any]) -> tuple[float, float, bool, bool]:
    """Lowest and highest value of a number, and whether each is left out."""
    whole = schema["type"] == "integer"
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum", LARGEST_INT if whole else LARGEST_FLOAT))
    assert low is not None, "every number has a lower bound"
    return low, high, "exclusiveMinimum" in schema, "exclusiveMaximum" in schema


NUMBERS = [
    (kind, name, schema)
    for kind, name in FIELDS
    for schema in alternatives(kind, name)
    if schema.get("type") in ("integer", "number")
]


def held(value: float) -> bool:
    return not value or abs(value) >= SMALLEST_FLOAT


@cache
def valid(kind: type[Settings], name: str) -> st.SearchStrategy[Any]:
    """Values that a field takes, as its type has them."""
    if name in SPECIAL:
        return SPECIAL[name]
    strategies = []
    for schema in alternatives(kind, name):
        match schema:
            case {"enum": choices}:
                strategies.append(st.sampled_from(choices))
            case {"const": choice}:
                strategies.append(st.just(choice))
            case {"type": "integer"}:
                low, high, above, below = limits(schema)
                strategies.append(st.integers(int(low) + above, int(high) - below))
            case {"type": "number"}:
                low, high, above, below = limits(schema)
                strategies.append(st.floats(low, high, exclude_min=above, exclude_max=below).filter(held))
            case {"type": "boolean"}:
                strategies.append(st.booleans())
            case {"type": "string", "format": "path"}:
                strategies.append(st.builds(Path, TEXT))
            case {"type": "string"}:
                strategies.append(TEXT)
            case {"type": "array"}:
                strategies.append(st.lists(TEXT.filter(lambda text: "," not in text), min_size=1).map(tuple))
            case {"type": "null"}:
                pass
            case _:
                raise AssertionError(f"{kind.__name__}.{name} is of a kind that this test does not know: {schema}")
    return st.one_of(strategies)


@st.composite
def configs(draw: st.DrawFn, kinds: list[type[Settings]]) -> tuple[type[Settings], dict[str, Any]]:
    kind = draw(st.sampled_from(kinds))
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    names = required | draw(st.sets(st.sampled_from(list(kind.model_fields)), max_size=5))
    values = {name: draw(valid(kind, name)) for name in sorted(names)}
    images = values.get("images", EvaluateConfig().images)
    if isinstance(images, int) and values.get("gap_images", 0) > images:
        del values["gap_images"]
    if values.get("new_run"):
        values.setdefault("resume", "run")
    return kind, _agreeing(kind, values)


def _agreeing(kind: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """The values without those that are refused beside others of them."""
    if values.get("activation") == "glu":
        values["net"] = "mlp"
    if values.get("likelihood") == "discretised_logistic":
        values.pop("binarise", None)
    if values.get("sigma") == "learned" and "free_sigma" in kind.model_fields:
        del values["sigma"]
    if values.get("prior") == "vamp" and not getattr(kind, "has_encoder", True):
        del values["prior"]
    if "top_dim" in kind.model_fields:
        if "latent_dim" in values:
            values["latent_dim"] = max(values["latent_dim"], 2)
        if "top_dim" in values:
            values["top_dim"] = min(values["top_dim"], values.get("latent_dim", 150) - 1)
        if values.get("gradient") == "dreg":
            values |= {"beta": 1.0, "beta_warmup": 0.0}
    return values


def from_flags(kind: type[Settings], arguments: list[str]) -> Settings:
    """What the command line makes of these arguments."""
    given = click.Command("any", params=options_of(kind)).make_context("any", arguments).params
    return kind.parse({key: value for key, value in given.items() if value is not None and value != ()})


@given(configs(ALL))
def test_what_is_valid_survives_json_exactly(drawn: tuple[type[Settings], dict[str, Any]]):
    kind, values = drawn
    config = kind.parse(values)
    assert {name: getattr(config, name) for name in values} == values
    assert kind.parse(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@given(configs(TRACKED))
def test_what_is_valid_survives_parameters_and_flags_exactly(drawn: tuple[type[Settings], dict[str, Any]]):
    kind, values = drawn
    config = kind.parse(values)
    assert kind.parse(config.params()) == kind.parse(config.changes()) == config
    command = " ".join(f"--{key.replace('_', '-')} {shlex.quote(value)}" for key, value in config.changes().items())
    assert from_flags(kind, shlex.split(command)) == config


@pytest.mark.parametrize(("kind", "name", "schema"), NUMBERS)
def test_a_number_is_taken_at_its_bound_and_refused_beyond_it(kind: type[Settings], name: str, schema: dict[str, Any]):
    low, high, above, below = limits(schema)
    whole = schema["type"] == "integer"
    required = {"name": "any"} if kind is PromoteConfig else {}

    def refused(value: float, bound: float) -> None:
        with pytest.raises(UserError) as error:
            kind.parse({name: value, **required})
        assert str(error.value).startswith(f"{name}={value!r}: should be")
        assert f"{bound:g}" in str(error.value) or str(bound) in str(error.value)

    step = (lambda value, up: value + (1 if up else -1)) if whole else _next
    for bound, out, up in ((low, above, True), (high, below, False)):
        if out:
            refused(bound, bound)
        for taken in [step(bound, up)] if out else [bound]:
            # A bound on two fields together is no bound of this one.
            together: dict[str, Any] = {"gap_images": {"images": "all"}, "top_dim": {"latent_dim": WIDEST}}.get(
                name, {}
            )
            assert getattr(kind.parse({name: taken, **required, **together}), name) == taken
        refused(step(bound, not up), bound)


def _next(value: float, up: bool) -> float:
    if value == 0:
        return SMALLEST_FLOAT if up else -SMALLEST_FLOAT
    return math.nextafter(value, math.inf if up else -math.inf)


@given(st.sampled_from(NUMBERS), st.data())
def test_beyond_a_bound_is_one_line_with_field_value_and_bound(drawn: Any, data: st.DataObject):
    kind, name, schema = drawn
    low, high, above, below = limits(schema)
    if schema["type"] == "integer":
        beyond = st.integers(max_value=int(low) - (not above)) | st.integers(min_value=int(high) + (not below))
    else:
        beyond = st.floats(max_value=low, exclude_max=not above) | st.floats(min_value=high, exclude_min=not below)
    value = data.draw(beyond)
    with pytest.raises(UserError) as error:
        kind.parse({name: value})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{name}={value!r:.100}")
    assert "should be" in str(error.value)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**400, max_value=10**401)
    # Python itself cannot write it.
    | st.just(5000).map(lambda digits: 10**digits)
    | st.sampled_from(["9" * 5000, "x" * 5000, "1e400", "nan", "-inf", "", "\0", "\ud800", "a\nb"])
    | st.floats()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.text()
    | st.text(st.characters(categories=["Cs", "Cc"]))
    | st.binary()
    | st.dates()
    | st.sampled_from([object(), int, np.float32("nan"), np.int64(-1), np.uint64(2**64 - 1), np.zeros((3, 3)), Path()]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(FIELDS), ANYTHING)
def test_any_value_at_all_is_taken_or_refused_in_one_line(field: tuple[type[Settings], str], value: Any):
    kind, name = field
    required = {"name": "any"} if kind is PromoteConfig else {}
    told = None
    try:
        config = kind.parse({**required, name: value})
        assert kind.parse(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    except UserError as error:
        told = str(error)
    assert told is None or (name in told and len(told.splitlines()) == 1 and len(told) < 2000)


ENTRY_POINTS: dict[str, Any] = load_project(str(REPOSITORY))._entry_points or {}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `python` in it that writes its arguments, each ended by NUL."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "python").write_text('#!/bin/sh\nfor argument do printf "%s\\0" "$argument"; done\n')
    (folder / "python").chmod(0o755)
    return folder


@settings(max_examples=settings().max_examples // 5)
@given(st.sampled_from(sorted(ENTRY_POINTS)), TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
def test_no_shell_reads_a_parameter_of_mlflow_run(echo: Path, name: str, argument: str, more: dict[str, str]):
    """The command that MLflow makes of -P parameters, run as MLflow runs it: by bash -c."""
    entry = ENTRY_POINTS[name]
    more = {key: value for key, value in more.items() if key not in entry.parameters}
    command = entry.compute_command({**dict.fromkeys(entry.parameters, argument), **more}, None)
    wanted = ["-m", "elbolab", name, *([argument] if entry.parameters else [])]
    wanted += [item for key, value in more.items() for item in (f"--{key}", value)]
    assert shlex.split(command) == ["python", *wanted]
    done = subprocess.run(
        ["bash", "-c", command], cwd=echo, env={"PATH": f"{echo}:{os.environ['PATH']}"}, capture_output=True, check=True
    )
    assert done.stdout.decode() == "".join(f"{item}\0" for item in wanted)
    assert [file.name for file in echo.iterdir()] == ["python"]


def test_a_command_that_nobody_quoted_would_be_seen(echo: Path):
    subprocess.run(
        ["bash", "-c", "python $(>planted)"], cwd=echo, env={"PATH": f"{echo}:{os.environ['PATH']}"}, check=True
    )
    (echo / "planted").unlink()
