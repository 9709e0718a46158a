"""Writing a run: its parameters, metrics by epoch, figures and artifacts, and how it ended, all through its journal."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from PIL import Image

from elbolab.support.errors import UserError, reason, redacted
from elbolab.support.user_code import Source
from elbolab.tracking import records
from elbolab.tracking.journal import Journal
from elbolab.tracking.keys import FAILED, FAILURE, FINISHED, KIND, PARENT, PROCESSES, RUNNING
from elbolab.tracking.mlflow_reader import address, get_run
from elbolab.tracking.mlflow_writer import MlflowWriter, Package
from elbolab.tracking.offline import OUTDATED, UNFINISHED, begun, can_be_resumed, is_done_with
from elbolab.tracking.uploader import Uploader, refused
from elbolab.training.curves import draw_curves

if TYPE_CHECKING:
    # To compare runs needs no torch, whose import takes seconds.
    from torch import Tensor

    from elbolab.data.batches import Data
    from elbolab.training.trainer import Event

CODE = Path(__file__).parent.parent / "__init__.py"
# How long a run waits for the server: at its start for an id, at its end as long as nothing gets through.
START_SECONDS, END_SECONDS, KILLED_SECONDS = 10, 30, 5

# Of this thread, or task: a run that another begins is no part of this one.
_under_way: ContextVar["RunWriter | None"] = ContextVar("_under_way", default=None)
_parent: str | None = None


class RunWriter:
    """The writer of one run: what it is given is on the disk at once, and is sent in the background.

    Every method that logs raises UserError where the disk takes no more.
    """

    def __init__(self, journal: Journal, package: Package | None = None) -> None:
        self.journal = journal
        self.writer = MlflowWriter(journal, package)

    @property
    def id(self) -> str:
        """Id of the run on the server, or that of its journal while the server does not have it."""
        return self.writer.run_id or self.journal.folder.name

    @property
    def folder(self) -> Path:
        """The folder of the run until it is finished: its journal, and the states that it is resumed from."""
        return self.journal.folder

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log all of ``metrics`` in one call."""
        self.journal.append(records.Metrics(metrics=metrics, step=step))

    def set_tags(self, tags: dict[str, str], last: bool = False) -> None:
        """Set all of ``tags`` in one call, the ``last`` ones not before every file is there."""
        self.journal.append(records.Tags(tags=tags, waits=last))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a copy of a file."""
        with self.journal.append_file(path.name, folder=folder) as file:
            shutil.copyfile(path, file)

    def log_value(self, value: Any, path: str) -> None:
        """Log a table as Parquet, named arrays as npz, anything else as JSON, as the artifact ``path``."""
        folder, _, name = path.rpartition("/")
        with self.journal.append_file(name, folder=folder or None) as file:
            if isinstance(value, pd.DataFrame):
                value.to_parquet(file, index=False)
            elif file.suffix == ".npz":
                np.savez_compressed(file, **value)
            else:
                file.write_text(json.dumps(value, indent=1))

    def log_code(self, code: Mapping[str, Source]) -> None:
        """Log the files of the user's own code as artifacts under `code`."""
        for source in code.values():
            for path, text in source.files.items():
                folder, _, name = f"code/{path}".rpartition("/")
                with self.journal.append_file(name, folder=folder) as file:
                    file.write_text(text, "utf-8")

    def log_data(self, data: "Data") -> None:
        """Log the training images as the run's input, with the digest of all the content of all splits."""
        images, labels = data.train.images.cpu().numpy(), data.train.labels.cpu().numpy()
        dataset = mlflow.data.from_numpy(images, targets=labels, name=data.name, digest=data.spec.digest)  # pyright: ignore
        self.journal.append(records.Inputs(data=dataset.to_dict()))

    def log_model(self, checkpoint: Path, example: np.ndarray) -> None:
        """Log a checkpoint as the run's model; ``example`` is what it predicts from, images uint8 (N, H, W, C)."""
        with self.journal.append_file(checkpoint.name, records.Checkpoint, example=example.tolist()) as file:
            shutil.copyfile(checkpoint, file)

    def report(self, event: "Event") -> None:
        """Log an epoch, its metrics in one call and its images by step; one that was logged before is not again."""
        said = self.journal.records
        if any(isinstance(one, records.Metrics) and one.step == event.epoch for one in said):
            return
        # The metrics are last, so that an epoch that has them is complete.
        self.log_pictures(event.images, event.epoch)
        self.log_metrics(event.metrics, event.epoch)

    def log_pictures(self, images: "dict[str, Tensor]", epoch: int) -> None:
        """Log the pictures of an epoch, grids (rows, columns, C, H, W) by name; one that was logged is not again."""
        said = self.journal.records
        there = {one.image for one in said if isinstance(one, records.Picture) and one.step == epoch}
        for key, grid in images.items():
            if key not in there:
                with self.journal.append_file(f"{key}.png", records.Picture, image=key, step=epoch) as file:
                    Image.fromarray(_tile(grid)).save(file)

    def log_curves(self) -> None:
        """Log the figure of the metrics reported so far, training against validation, where it can be drawn."""
        picture = draw_curves([one.metrics for one in self.journal.records if isinstance(one, records.Metrics)])
        if picture is not None:
            with self.journal.append_file("curves.png", folder="figures") as file:
                file.write_bytes(picture)


def _tile(grid: "Tensor") -> np.ndarray:
    """Images (rows, columns, C, H, W) in [0, 1] as one uint8 picture, a white pixel between them.

    It is (height, width, C), or (height, width) of grey images.
    """
    rows, columns, channels, height, width = grid.shape
    pixels = (grid * 255).round().byte().permute(0, 3, 1, 4, 2).cpu().numpy()
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0)), constant_values=255)
    picture = pixels.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return picture.squeeze(-1) if channels == 1 else picture


@contextmanager
def start_run(
    kind: str,
    name: str,
    params: dict[str, str],
    tags: dict[str, str],
    run_id: str | None = None,
    folder: Path | None = None,
    package: Package | None = None,
) -> Iterator[RunWriter]:
    """A run under way: the unfinished one of ``folder``, else ``run_id``, else that of `mlflow run`, or a new one.

    A new one is nested in the one that is under way, if any, or in that of `mlflow run` where another call has written
    to it. It ends FINISHED, or KILLED when it is interrupted, or
    FAILED with the reason as the tag ``failure``. While the server does not answer the run goes on, and what is logged
    stays in the folder ``unfinished``. ``package`` logs its model, where it has one.

    Raises UserError where the server refuses it.
    """
    given = None if folder or run_id else os.environ.pop("MLFLOW_RUN_ID", None)
    own = {KIND: kind, MLFLOW_RUN_NAME: name, **code_tags(), **tags}
    own = {key: redacted(value) for key, value in own.items()}
    journal = Journal(folder or UNFINISHED.absolute() / uuid4().hex)
    first: records.NewRun | records.KnownRun | None = None
    if journal.is_new:
        new = _new_run(name, given)
        first = {"id": run_id} if run_id else {"id": given, "otherwise": new} if given else new
    status = RUNNING if run_id or given or folder else None
    journal.append(records.Begin(tags=own, params=params, run=first, status=status))
    with _sending(journal, package) as run:
        outer = _under_way.set(run)
        status = FINISHED
        try:
            yield run
        except BaseException as error:
            if (status := records.status_after(error)) == FAILED:
                run.set_tags({FAILURE: redacted(f"{type(error).__name__}: {error}")[:500]})
            raise
        finally:
            _under_way.reset(outer)
            journal.append(records.End(status=status))


@contextmanager
def reopen_run(run_id: str) -> Iterator[RunWriter]:
    """The writer of a run that is not under way; its status stays.

    What the body logs is sent after it, all or, where it raises or its process is killed, nothing. Raises UserError
    where the server refuses it.
    """
    journal = Journal(UNFINISHED.absolute() / uuid4().hex)
    try:
        with journal.together():
            journal.append(records.Attach(run={"id": run_id, "attached": True}))
            yield RunWriter(journal)
    except BaseException:
        journal.close(remove=True)
        raise
    with _sending(journal):
        pass


def nest_project_run(run_id: str, kind: str) -> None:
    """Nest the run that `mlflow run` made for a call under ``run_id``, on which the call works, and tag its kind.

    A run that something is written to already stays as it is. Raises UserError where the server has no such run.
    """
    call = os.environ.pop("MLFLOW_RUN_ID", None)
    if call not in (None, run_id) and KIND not in get_run(call).tags:
        with reopen_run(call) as track:
            track.set_tags({PARENT: run_id, KIND: kind})


def nest_new_runs(run_id: str) -> None:
    """Nest the runs that this process starts from now on, and that are in no other of its own, under ``run_id``."""
    global _parent
    _parent = run_id


def _new_run(name: str, parent: str | None = None) -> records.NewRun:
    own, above = _under_way.get(), mlflow.active_run()
    parent = parent or (own.id if own else above.info.run_id if above else _parent)
    new: records.NewRun = {"name": name, "time": int(time.time() * 1000), "tags": resolve_tags(), "parent": parent}
    if (known := os.environ.get("MLFLOW_EXPERIMENT_ID")) is not None:
        return {**new, "experiment_id": known}
    return {**new, "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")}


@contextmanager
def _sending(journal: Journal, package: Package | None = None) -> Iterator[RunWriter]:
    run = RunWriter(journal, package)
    uploader = Uploader(journal, run.writer)
    patience, is_refused = END_SECONDS, False
    try:
        uploader.wait(START_SECONDS, lambda: run.writer.is_there or uploader.problem is not None)
        if (problem := uploader.problem) and (is_refused := not run.writer.is_there and refused(problem)):
            raise UserError(f"{address()} refuses the run: {reason(problem)}")
        yield run
    except (KeyboardInterrupt, SystemExit):
        patience = KILLED_SECONDS
        raise
    finally:
        if is_refused:
            uploader.stop()
            journal.close(remove=journal.is_new)
        else:
            if (end := records.end_of_lost(journal.records)) is not None:
                # It was interrupted before the body began.
                journal.append(end)
            uploader.wait(patience, lambda: run.writer.left() == 0 or refused(uploader.problem))
            uploader.stop()
            _say_what_is_left(run, uploader.problem)
            journal.close(is_done_with(journal, run.writer))


def _say_what_is_left(run: RunWriter, problem: Exception | None) -> None:
    if run.writer.is_outdated:
        print(f"elbolab: {OUTDATED.format(run.id)}", file=sys.stderr, flush=True)
    if left := run.writer.left():
        why = f": {reason(problem)}" if problem else ""
        line = f"{left} records of run {run.id} are not on {address()}{why}; `elbolab sync` sends them"
        print(f"elbolab: {line} from {run.folder}", file=sys.stderr, flush=True)
    if can_be_resumed(run.journal) and PROCESSES not in begun(run.folder)[1]:
        print(f"elbolab: `elbolab resume {run.id}` resumes it", file=sys.stderr, flush=True)


def code_tags() -> dict[str, str]:
    """The commit that this code stands at, and whether it has been changed since; nothing where no git keeps it.

    A study writes into the documentation, which changes no code.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CODE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An environment may lie within the checkout of something else.
        git("ls-files", "--error-unmatch", CODE.name)
        changes = git("status", "--porcelain", ".")
        return {"git.commit": git("rev-parse", "HEAD"), "git.dirty": str(bool(changes)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
