"""The command line: a training command for every model, the others beside them, and how each of them ends."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from elbolab.models import MODELS
from elbolab.support.errors import UserError, redacted
from elbolab.support.malloc import tune_memory

if TYPE_CHECKING:
    from elbolab.config import schema
    from elbolab.config.base import Settings

ENVIRONMENT = {
    # What a command prints on standard output is for scripts: `elbolab evaluate $(elbolab vae)`.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Work goes on without the server, so it need not be waited for during minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Command(click.Command):
    """A command whose flags are the fields of one or more settings; ``act`` gets these and the ``arguments`` by name.

    Settings are looked up once the command is asked for, and not by `elbolab --help`: their imports take half a second,
    and two where a model is among them.
    """

    def __init__(
        self,
        name: str,
        kinds: Callable[[], list[type["Settings"]]],
        act: Callable[..., None],
        *arguments: click.Argument,
    ) -> None:
        # `python -OO` takes docstrings away.
        what = act.__doc__ or ""
        super().__init__(name, callback=self._call, params=[*arguments], help=what, short_help=what.partition("\n")[0])
        self._kinds = kinds
        self._act = act
        self._has_options = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._has_options:
            from elbolab.config.click_options import options_of

            options = [option for kind in self._kinds() for option in options_of(kind)]
            names = [option.name for option in options]
            if twice := [str(name) for name in names if names.count(name) > 1]:
                raise UserError(
                    f"{self.name}: {twice[0]} is the name of a flag that every training has; rename the field"
                )
            self.params += options
            self._has_options = True
        return super().get_params(ctx)

    def _call(self, **values: Any) -> None:
        given = {key: value for key, value in values.items() if value is not None and value != ()}
        settings = []
        for kind in self._kinds():
            settings.append(kind.parse({key: given.pop(key) for key in list(given) if key in kind.model_fields}))
        _find_store()
        self._act(*settings, **given)


def _find_store() -> None:
    """Write to the store in which `mlflow run`, in whatever folder it was called, has made the run of this call."""
    run_id, address = os.environ.get("MLFLOW_RUN_ID"), os.environ.get("MLFLOW_TRACKING_URI")
    if run_id and address:
        from elbolab.support.sqlite import meant_by_caller

        os.environ["MLFLOW_TRACKING_URI"] = meant_by_caller(address, run_id)


class Commands(click.Group):
    """The group of all commands, of which torchrun starts only the trainings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Its flags are those of the model that it is given.
        if args[0] == "train" and len(args) > 1 and not args[1].startswith("-"):
            return f"train {args[1]}", _training(args[1]), args[2:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if "TORCHELASTIC_RUN_ID" in os.environ and command is not None and cmd_name not in (*MODELS, "train"):
            raise click.UsageError(f"{cmd_name} is the work of one process; start it without torchrun")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="elbolab")
def cli() -> None:
    """Train, evaluate and compare latent-variable generative models of images, tracked in MLflow."""


def _training(name: str) -> Command:
    def kinds() -> list[type["Settings"]]:
        from elbolab.config.schema import ResumeConfig

        return [MODELS.find(name).Config, ResumeConfig]

    def act(config: "schema.Config", again: "schema.ResumeConfig") -> None:
        from elbolab.experiment.train import resume, train_model
        from elbolab.tracking.run import nest_project_run

        if again.resume is not None:
            given = {field: getattr(config, field) for field in config.model_fields_set}
            run_id = resume(again.resume, name, given, again.new_run)
            _say_trained(run_id, MODELS.find(name).code_of(config))
            return
        # `mlflow run -P model=FILE:CLASS` makes a run whose model is the file; that is of the call.
        call = None if name in MODELS else os.environ.pop("MLFLOW_RUN_ID", None)
        if run_id := train_model(name, config):
            if call is not None:
                os.environ["MLFLOW_RUN_ID"] = call
                nest_project_run(run_id, "train call")
            _say_trained(run_id, MODELS.find(name).code_of(config))

    summary = MODELS.summary(name) if name in MODELS else MODELS.summary_of(MODELS.find(name))
    act.__doc__ = f"Train {summary[:1].lower()}{summary[1:]}"
    return Command(name, kinds, act)


def _say_trained(run_id: str, code: Mapping[str, Any]) -> None:
    """Print the id for scripts, and for people what is to be done next with a run that carries this ``code``."""
    trust = " --trust" if code else ""
    click.echo(f"elbolab: `elbolab evaluate {run_id[:8]}{trust}` measures it, `elbolab runs` lists all", err=True)
    click.echo(run_id)


def _train(_: "Settings") -> None:
    """Train a model of your own, path/to/file.py:Name, its flags behind it; or one by its name here.

    `elbolab train path/to/file.py:Name --help` shows the flags.
    """
    raise UserError("train needs a model: a name, or path/to/file.py:Name, before all flags")


def _resume(_: "Settings", run: str) -> None:
    """Go on with the interrupted training RUN from its newest state, in the folder in which it was begun."""
    from elbolab.experiment.train import resume
    from elbolab.tracking.code import read_code
    from elbolab.tracking.offline import find_unfinished

    folder = find_unfinished(run)
    code = {} if folder is None else read_code(folder)
    _say_trained(resume(run), code)


def _sync(_: "Settings") -> None:
    """Send to the tracking server what earlier commands in this folder could not."""
    from elbolab.registry.packaging import log_model
    from elbolab.tracking.offline import send_unfinished

    lines = send_unfinished(log_model)
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("elbolab: every record here has been sent", err=True)


def _runs(config: "schema.RunsConfig") -> None:
    """List the trainings of the current experiment, newest first: what they are, how far they are and how good."""
    from elbolab.tracking.listing import list_trainings

    defaults = {name: kind.Config().params() for name, kind in MODELS.items()}
    lines = list_trainings(defaults, config.limit)
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("elbolab: no training yet; `elbolab vae` is one", err=True)


def _prune(config: "schema.PruneConfig") -> None:
    """Delete the runs that a rule names, but none that something else needs, after listing them and asking."""
    from elbolab.experiment.prune import delete, plan
    from elbolab.tracking.keys import KIND
    from elbolab.tracking.listing import age

    found = plan(config)
    for run_id, why in found.kept.items():
        click.echo(f"stays: {run_id[:8]}, {why}")
    for run in found.runs:
        click.echo(f"named: {run.id[:8]}, {run.tags[KIND]} {run.name}, {run.status}, {age(run.start)} old")
    what = "" if config.what == "runs" else f"the {config.what} of "
    count = f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    click.echo(f"to delete: {what}{count}; to stay: {len(found.kept)} of those named")
    if config.dry_run or not found.runs:
        return
    if not config.yes:
        if not sys.stdin.isatty():
            raise UserError("nothing is deleted, since nobody can be asked here; add --yes")
        if not click.confirm(f"Delete {what}{count}?"):
            click.echo("nothing is deleted")
            return
    for run in found.runs:
        delete(run, config.what)
        click.echo(f"deleted: {run.id[:8]}")


def _evaluate(config: "schema.EvaluateConfig", code: "schema.TrustConfig", run: str) -> None:
    """Evaluate the trained run RUN: log p(x), class preservation, latent space and samples."""
    from elbolab.experiment.evaluate import evaluate_run, in_a_sentence

    found = evaluate_run(run, config, trust=code.trust)
    for key, value in found.items():
        click.echo(f"{key} {value:.4f}")
    click.echo(f"elbolab: {in_a_sentence(found)}", err=True)


def _adopt(config: "Settings", code: "schema.TrustConfig", source: str) -> None:
    """Make a run of a model that was trained elsewhere: of pythae, of diffusers, or of path/to/file.py:Adapter.

    SOURCE is the folder that pythae or diffusers saved, or a class with encode and decode. What is declared here is the
    likelihood under which it is evaluated, on which images.
    """
    from elbolab.experiment.adopt import adopt

    run_id = adopt(source, code.trust is True, **config.model_dump(exclude_unset=True))
    trust = " --trust" if source.rpartition(":")[0].endswith(".py") else ""
    click.echo(f"elbolab: `elbolab evaluate {run_id[:8]}{trust}` measures it", err=True)
    click.echo(run_id)


def _adopt_config() -> list[type["Settings"]]:
    from elbolab.config.schema import TrustConfig
    from elbolab.models.adopted import AdoptConfig

    return [AdoptConfig, TrustConfig]


def _compare(config: "schema.CompareConfig") -> None:
    """Write the report of the newest run of each model, converged if one is, or of the runs that --run names."""
    from elbolab.report.compare import compare

    click.echo(compare(config))


def _promote(config: "schema.PromoteConfig", run: str) -> None:
    """Register the model of the evaluated run RUN, and give it an alias unless the version that has it is better."""
    from elbolab.registry.versions import promote

    click.echo(promote(run, config))


def _models(_: "Settings") -> None:
    """List the versions of the registered models, with what they are and how good."""
    from elbolab.registry.versions import list_versions

    versions = list_versions()
    for version in versions:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        click.echo(f"models:/{version.name}/{version.version}{aliases}: {version.description or 'no description'}")
    if not versions:
        click.echo("elbolab: no registered model yet; `elbolab promote RUN --name NAME` makes one", err=True)


def _explore(config: "schema.ExploreConfig", code: "schema.TrustConfig", run: tuple[str, ...]) -> None:
    """Write a page that decodes in the browser: the latent space of one trained RUN, or of two side by side."""
    from elbolab.config.base import split_names
    from elbolab.explorer.page import explore

    click.echo(explore(split_names(run), config, code.trust))


def _main(given: "schema.SuiteConfig") -> None:
    """Train cnn, vae, latent_opt (from three starts) and ppca, evaluate every run, and write the report."""
    from elbolab.experiment.suite import run_all

    click.echo(f"report: {run_all(given)}")


def _study(config: "schema.StudyConfig", study: str) -> None:
    """Carry out STUDY, a file or a name in studies/: an Optuna search of a model's fields, or a reproduction."""
    from elbolab.tuning.command import run_study

    click.echo(run_study(study, config))


def _settings(names: str) -> Callable[[], list[type["Settings"]]]:
    """What gives the classes of these names in ``elbolab.config.schema``."""

    def kinds() -> list[type["Settings"]]:
        from elbolab.config import schema

        return [getattr(schema, name) for name in names.split()]

    return kinds


for _name in MODELS:
    cli.add_command(_training(_name))
for _name, _act, _kinds, _arguments in (
    ("train", _train, "Settings", []),
    ("resume", _resume, "Settings", [click.Argument(["run"])]),
    ("sync", _sync, "Settings", []),
    ("runs", _runs, "RunsConfig", []),
    ("prune", _prune, "PruneConfig", []),
    ("evaluate", _evaluate, "EvaluateConfig TrustConfig", [click.Argument(["run"])]),
    ("study", _study, "StudyConfig", [click.Argument(["study"])]),
    ("compare", _compare, "CompareConfig", []),
    ("promote", _promote, "PromoteConfig", [click.Argument(["run"])]),
    ("models", _models, "Settings", []),
    ("explore", _explore, "ExploreConfig TrustConfig", [click.Argument(["run"], nargs=-1, required=True)]),
    ("main", _main, "MainConfig", []),
):
    cli.add_command(Command(_name, _settings(_kinds), _act, *_arguments))


cli.add_command(Command("adopt", _adopt_config, _adopt, click.Argument(["source"])))


def main() -> None:
    """Run the command line: 0 when done, 2 and one line on a mistake of the user, 130 or 143 when interrupted."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tune_memory()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # A command draws into files, where a notebook or a desktop has set what draws on a screen.
    os.environ["MPLBACKEND"] = "agg"
    # All of torchrun's processes make the same mistake; one of them says so.
    speaks = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"
    try:
        cli(prog_name="elbolab", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("elbolab: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        if speaks:
            # Click does not say where an option without its value was.
            path = error.ctx.command_path if error.ctx else " ".join(["elbolab", *sys.argv[1:2]])
            click.echo(f"elbolab: {error.format_message().removesuffix('.')}; see `{path} --help`", err=True)
        sys.exit(error.exit_code)
    except UserError as error:
        if speaks:
            click.echo(f"elbolab: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        # Wherever it was: in the working folder, the one for temporary files, the cache.
        if isinstance(error, OSError) and error.errno in FULL:
            click.echo(f"elbolab: {error}; free some space", err=True)
            sys.exit(2)
        from mlflow.exceptions import MlflowException

        # A server that does not answer, or not to this user, is nobody's bug; an address may hold a password.
        if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403, 500, 502, 503, 504):
            click.echo(f"elbolab: {redacted(str(error).splitlines()[0])}", err=True)
            sys.exit(2)
        click.echo(redacted(traceback.format_exc()), err=True)
        sys.exit(1)
