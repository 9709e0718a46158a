"""The command line: every flag comes from a field of a config, every training command from ``MODELS``."""

import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import click

from elbolab.config import (
    CompareConfig,
    EvaluateConfig,
    ExploreConfig,
    MainConfig,
    PromoteConfig,
    ResumeConfig,
    Settings,
    StudyConfig,
    split_ids,
)
from elbolab.errors import UserError, redacted

ENVIRONMENT = {
    # What a command prints on standard output is for scripts: `elbolab evaluate $(elbolab vae)`.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Work goes on without the server, so it need not be waited for during minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class Commands(click.Group):
    """The group whose training commands are known only once the models are imported, which takes torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from elbolab.models import MODELS

        return [*MODELS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (command := super().get_command(ctx, cmd_name)) is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ:
                raise click.UsageError(f"{cmd_name} is the work of one process; start it without torchrun")
            return command
        from elbolab.models import MODELS

        return _training(cmd_name) if cmd_name in MODELS else None


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
                list(dict.fromkeys([name, f"--{name.replace('_', '-')}", f"--{name}"])),
                type=_click_type(kinds),
                multiple=many,
                **alone,
                default=() if many else None,
                help=" ".join([field.description or "", f"[{'; '.join(notes)}]" if notes else ""]),
            )
        )
    return options


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


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value != ()}


def _training(name: str) -> click.Command:
    from elbolab.models import MODELS

    model = MODELS[name]

    def command(**values: Any) -> None:
        given = _given(values)
        again = ResumeConfig.parse({key: given.pop(key) for key in list(given) if key in ResumeConfig.model_fields})
        config = model.Config.parse(given)
        from elbolab.experiment import resume, train_model

        if again.resume is not None:
            click.echo(resume(again.resume, name, given, again.new_run))
        elif run_id := train_model(name, config):
            click.echo(run_id)

    summary = (model.__doc__ or "").strip().splitlines()[0]
    params = options_of(model.Config) + options_of(ResumeConfig)
    return click.Command(name, callback=command, params=params, help=f"Train {name}: {summary}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="elbolab")
def cli() -> None:
    """Train, evaluate and compare latent-variable generative models of images, tracked in MLflow."""


def _resume(run: str) -> None:
    """Go on with the interrupted training RUN from its newest state, in the folder in which it was begun."""
    from elbolab.experiment import resume

    click.echo(resume(run))


def _sync() -> None:
    """Send to the tracking server what earlier commands in this folder could not."""
    from elbolab.tracker import send_unfinished

    for line in send_unfinished():
        click.echo(line)


def _evaluate(run: str, **values: Any) -> None:
    """Evaluate the trained run RUN: log p(x) by importance sampling, and class preservation."""
    config = EvaluateConfig.parse(_given(values))
    from elbolab.experiment import evaluate_run

    for key, value in evaluate_run(run, config).items():
        click.echo(f"{key} {value:.4f}")


def _compare(**values: Any) -> None:
    """Write the report of the newest run of each model, or of the runs named by --run, from the tracking server."""
    config = CompareConfig.parse(_given(values))
    from elbolab.compare import compare

    click.echo(compare(config))


def _promote(run: str, **values: Any) -> None:
    """Register the model of the evaluated run RUN, and give it an alias unless the version that has it is better."""
    config = PromoteConfig.parse(_given(values))
    from elbolab.versions import promote

    click.echo(promote(run, config))


def _models(**values: Any) -> None:
    """List the versions of the registered models, with what they are and how good."""
    from elbolab.versions import list_versions

    for version in list_versions():
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        click.echo(f"models:/{version.name}/{version.version}{aliases}: {version.description or 'no description'}")


def _explore(run: tuple[str, ...], **values: Any) -> None:
    """Write a page that decodes in the browser: the latent space of one trained RUN, or of two side by side."""
    config = ExploreConfig.parse(_given(values))
    from elbolab.explorer.page import explore

    click.echo(explore(split_ids(run), config))


def _main(**values: Any) -> None:
    """Train cnn, vae, latent_opt and ppca, evaluate every run, and write the report."""
    given = MainConfig.parse(_given(values))
    from elbolab.experiment import run_all

    click.echo(f"report: {run_all(given)}")


def _study(study: str, **values: Any) -> None:
    """Carry out STUDY, a file or a name in studies/: an Optuna search of a model's fields, or a reproduction."""
    config = StudyConfig.parse(_given(values))
    from elbolab.studies import run_study

    click.echo(run_study(study, config))


for _name, _callback, _settings, _arguments in (
    ("resume", _resume, Settings, [click.Argument(["run"])]),
    ("sync", _sync, Settings, []),
    ("evaluate", _evaluate, EvaluateConfig, [click.Argument(["run"])]),
    ("study", _study, StudyConfig, [click.Argument(["study"])]),
    ("compare", _compare, CompareConfig, []),
    ("promote", _promote, PromoteConfig, [click.Argument(["run"])]),
    ("models", _models, Settings, []),
    ("explore", _explore, ExploreConfig, [click.Argument(["run"], nargs=-1, required=True)]),
    ("main", _main, MainConfig, []),
):
    _params = [*_arguments, *options_of(_settings)]
    cli.add_command(click.Command(_name, callback=_callback, params=_params, help=_callback.__doc__))


def _terminate(number: int, frame: Any) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line: 0 when done, 2 and one line on a mistake of the user, 130 or 143 when interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    # Imports leave a million objects that stay; to look through them for garbage is a fifth of a short command's time.
    gc.set_threshold(100_000)
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # All of torchrun's processes make the same mistake; one of them says so.
    speaks = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        if speaks:
            error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        if speaks:
            click.echo(f"elbolab: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        from mlflow.exceptions import MlflowException

        # A server that does not answer, or not to this user, is nobody's bug; an address may hold a password.
        if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403, 500, 502, 503, 504):
            click.echo(f"elbolab: {redacted(str(error).splitlines()[0])}", err=True)
            sys.exit(2)
        click.echo(redacted(traceback.format_exc()), err=True)
        sys.exit(1)
