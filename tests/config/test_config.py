"""One definition of a field, four surfaces: flag, parameter, search range, JSON; MLproject and pins in step."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from conftest import REPOSITORY

from elbolab.cli import cli
from elbolab.config.base import Settings
from elbolab.config.click_options import command_line, options_of
from elbolab.config.ranges import distribution_of
from elbolab.config.schema import (
    CompareConfig,
    Config,
    EvaluateConfig,
    ExploreConfig,
    MainConfig,
    StudyConfig,
    default_data_dir,
)
from elbolab.models import MODELS
from elbolab.support.errors import UserError

ALL: list[type[Settings]] = [
    *(model.Config for model in MODELS.values()),
    EvaluateConfig,
    CompareConfig,
    ExploreConfig,
    MainConfig,
    StudyConfig,
]


@pytest.mark.parametrize("settings", ALL)
def test_every_field_is_a_flag_in_both_spellings_with_help(settings: type[Settings]):
    options = {option.name: option for option in options_of(settings)}
    assert list(options) == list(settings.model_fields)
    for name, option in options.items():
        assert isinstance(option, click.Option)
        assert {f"--{name}", f"--{name.replace('_', '-')}"} == set(option.opts)
        assert option.help, f"{settings.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    ("name", "arguments", "fields"),
    [
        ("vae", (), {"latent_dim": 4, "lr": "1e-05", "dataset": "npz:it's mine.npz", "sigma": None, "seed": 0}),
        ("study", ("burda2016",), {"only": ("vae *", "$HOME"), "passes": None, "finalise": 3}),
        ("study", ("a study's file.py",), {"only": ()}),
    ],
)
def test_a_command_line_is_read_as_what_it_was_made_of(name: str, arguments: tuple[str, ...], fields: dict[str, Any]):
    program, *words = shlex.split(command_line(name, *arguments, **fields))
    assert (program, words[0]) == ("elbolab", name)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    read = command.make_context(name, words[1:]).params
    given = {key: value for key, value in read.items() if value not in (None, (), *arguments)}
    wanted = {key: value for key, value in fields.items() if value not in (None, ())}
    assert {key: str(value) for key, value in given.items()} == {
        key: str(float(value) if key == "lr" else value) for key, value in wanted.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_config_survives_json_and_parameters_bit_for_bit(name: str):
    kind = MODELS[name].Config
    config = kind.parse({"lr": 0.1 + 0.2, "seed": 7, "train_size": 12, "dataset": "npz:a b/ü.npz"})
    assert kind.parse(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert kind.parse(config.params()) == kind.parse(config.changes()) == config
    assert set(config.changes()) == {"lr", "seed", "train_size", "dataset"}


@pytest.mark.parametrize("name", MODELS)
def test_a_search_range_lies_within_the_bounds_of_its_field(name: str):
    kind = MODELS[name].Config
    searched = 0
    for field, info in kind.model_fields.items():
        if distribution_of(info.metadata) is None:
            with pytest.raises(UserError, match=f"{field} declares no search range"):
                kind.search_range(field)
            continue
        searched += 1
        found: Any = kind.search_range(field)
        for value in getattr(found, "choices", None) or (found.low, found.high):
            if field == "prior" and value == "vamp" and not getattr(kind, "has_encoder", False):
                with pytest.raises(UserError, match="this model has no encoder"):
                    kind.parse({field: value})
                continue
            # Of a loss with a weighted KL it is refused.
            together = {"beta_warmup": 0.0} if value == "dreg" and "beta_warmup" in kind.model_fields else {}
            assert getattr(kind.parse({field: value, **together}), field) == value
    assert searched >= 2
    with pytest.raises(UserError, match=r"nonsense is not a parameter; there are: .*lr"):
        kind.search_range("nonsense")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "lr=0: should be greater than 0 (default 0.001)"),
        ({"latent_dim": -3}, "latent_dim=-3: should be greater than 0 (default 200)"),
        (
            {"likelihood": "poisson"},
            "likelihood='poisson': should be 'gaussian', 'bernoulli', 'continuous_bernoulli' or 'discretised_logistic'",
        ),
        ({"sigma": float("nan")}, "sigma=nan: should be a finite number"),
        ({"latentdim": 3}, "latentdim is not a parameter; there are: dataset"),
    ],
)
def test_a_wrong_value_is_told_with_its_bound(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        MODELS["vae"].Config.parse(values)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_main_hands_on_what_is_given_and_nothing_else():
    given = MainConfig.parse({"epochs": "2", "images": "all"})
    assert given.shared_with(MODELS["vae"].Config) == {"epochs": 2}
    assert given.shared_with(EvaluateConfig) == {"images": "all"}


def test_mlproject_has_the_commands_of_the_cli_and_repeats_no_parameter():
    project = yaml.safe_load((REPOSITORY / "MLproject").read_text())
    commands = cli.list_commands(click.Context(cli))
    # The others make no run.
    assert set(project["entry_points"]) == {*commands} - {"promote", "models", "sync", "runs", "prune"}
    for name, entry in project["entry_points"].items():
        assert entry["command"].split()[:4] == ["python", "-m", "elbolab", name]
        assert set(entry.get("parameters", {})) <= {"run", "study", "model", "source"}


def test_pins_are_those_of_pyproject_and_of_what_is_installed():
    conda = yaml.safe_load((REPOSITORY / "conda.yaml").read_text())
    pip = next(item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    assert pip[-1] == "-e ."
    pins = dict(line.split("==") for line in pip[:-1])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    assert list(pins) == names
    for line in project["dependencies"]:
        for relation, bound in re.findall(r"(>=|<)([\d.]+)", line):
            pinned, limit = (tuple(map(int, text.split("."))) for text in (pins[re.split(r"[<>=]", line)[0]], bound))
            assert pinned >= limit if relation == ">=" else pinned < limit
    assert {name: version(name).split("+")[0] for name in pins} == pins
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    constraints = dict(line.split("==") for line in lines)
    assert len(constraints) == len(lines)
    assert {name: constraints[name] for name in pins} == pins
    for extra in project["optional-dependencies"].values():
        direct = {re.split(r"[\[<>=]", line)[0] for line in extra} - {"elbolab"}
        assert direct <= constraints.keys()
        assert {name: version(name).split("+")[0] for name in direct} == {name: constraints[name] for name in direct}


@pytest.mark.parametrize(
    "name", [*MODELS, "evaluate", "compare", "explore", "main", "study", "promote", "models", "runs", "prune"]
)
def test_help_shows_defaults_and_bounds(name: str):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    if name in MODELS:
        assert "--batch-size, --batch_size" in result.output
        assert "[> 0; default: 64]" in " ".join(result.output.split())


def test_help_says_what_each_model_is_and_works_without_docstrings():
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    told = run([sys.executable, "-m", "elbolab", "--help"]).stdout.partition("Commands:")[2]
    assert "..." not in told
    for name in MODELS:
        assert re.search(rf"^  {name} +Train (a|the|probabilistic) ", told, re.MULTILINE)
    run([sys.executable, "-OO", "-m", "elbolab", "--help"])


def test_a_config_of_an_earlier_version_without_clipping_is_one_now():
    assert Config.parse({"clip": None}).clip == 0.0


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No shell replaces that of `--out=~/report`, of `mlflow run -P out=~/report` and of a quoted variable."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ELBOLAB_DATA", "~/data")
    for settings, field in ((Config, "data_dir"), (CompareConfig, "out"), (ExploreConfig, "out"), (MainConfig, "out")):
        assert getattr(settings.parse({field: "~/a b"}), field) == tmp_path / "a b"
        assert getattr(settings.parse({field: "a~/~"}), field) == Path("a~/~")
    given = MainConfig.parse({"data_dir": "~/data"}).shared_with(Config)
    assert Config.parse(given).params()["data_dir"] == f"{tmp_path}/data"
    assert Config().data_dir == default_data_dir() == tmp_path / "data"
    assert StudyConfig.parse({"storage": "sqlite:///~/o.db"}).storage == f"sqlite:///{tmp_path}/o.db"
    for url in ("sqlite:///o.db", "sqlite:////o.db", "postgresql+psycopg://u@h/~d"):
        assert StudyConfig.parse({"storage": url}).storage == url
