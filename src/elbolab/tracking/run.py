"""Writing a run: its parameters, metrics by epoch, figures and artifacts, and how it ended, all through its journal."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking.context.registry import resolve_tags
from PIL import Image

from elbolab.support.errors import UserError, reason, redacted
from elbolab.tracking.journal import Journal, Record
from elbolab.tracking.keys import FAILED, FAILURE, FILES, FINISHED, KILLED, KIND, PARENT, PROCESSES, RUNNING, VALUES
from elbolab.tracking.mlflow_reader import address
from elbolab.tracking.mlflow_writer import MlflowWriter, Package
from elbolab.tracking.offline import UNFINISHED, begun, is_done_with, is_open, is_training, last_status
from elbolab.tracking.uploader import Uploader, refused

if TYPE_CHECKING:
    # Comparing runs takes no torch, whose import takes seconds.
    from torch import Tensor

    from elbolab.data.splits import Data
    from elbolab.training.trainer import Event

CODE = Path(__file__).parent.parent / "__init__.py"
# How long a run waits for the server: at its start for an id, at its end as long as nothing gets through.
START_SECONDS, END_SECONDS, KILLED_SECONDS = 10, 30, 5

_under_way: list["RunWriter"] = []


class RunWriter:
    """The writing end of one run: what it is given is safe on the disk, and is sent in the background."""

    def __init__(self, journal: Journal, package: Package | None = None) -> None:
        self.journal = journal
        self.writer = MlflowWriter(journal, package)

    @property
    def id(self) -> str:
        """Id of the run on the server, or that of its journal while the server has not heard of it."""
        return self.writer.run_id or self.journal.folder.name

    @property
    def folder(self) -> Path:
        """Where the run keeps what it needs to be gone on with, until it is finished."""
        return self.journal.folder

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log all of ``metrics`` in one call."""
        self.journal.append(lane=VALUES, metrics=metrics, step=step)

    def set_tags(self, tags: dict[str, str], last: bool = False) -> None:
        """Set all of ``tags`` in one call, the ``last`` ones not before every file is there."""
        self.journal.append(lane=VALUES, tags=tags, waits=last)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file with the run."""
        with self.journal.keeping(path.name) as file:
            shutil.copyfile(path, file)
        self._log_file(file, folder)

    def log_value(self, value: Any, path: str) -> None:
        """Keep a table as Parquet, named arrays as npz, anything else as JSON, as the artifact ``path``."""
        folder, _, name = path.rpartition("/")
        with self.journal.keeping(name) as file:
            if isinstance(value, pd.DataFrame):
                value.to_parquet(file, index=False)
            elif file.suffix == ".npz":
                np.savez_compressed(file, **value)
            else:
                file.write_text(json.dumps(value, indent=1))
        self._log_file(file, folder or None)

    def log_data(self, data: "Data") -> None:
        """Log the training images as the run's input, with the digest of all the content of all splits."""
        images, labels = data.train.images.cpu().numpy(), data.train.labels.cpu().numpy()
        dataset = mlflow.data.from_numpy(images, targets=labels, name=data.name, digest=data.spec.digest)  # pyright: ignore
        self.journal.append(lane=FILES, data=dataset.to_dict())

    def log_model(self, checkpoint: Path, example: np.ndarray) -> None:
        """Log a checkpoint as the run's model; ``example`` is what it predicts from, images uint8 (N, H, W, C)."""
        with self.journal.keeping(checkpoint.name) as file:
            shutil.copyfile(checkpoint, file)
        self._log_file(file, example=example.tolist())

    def report(self, event: "Event") -> None:
        """Log an epoch, its metrics in one call and its images by step; one that was logged before is not again."""
        there = {(record.get("image"), record["step"]) for record in self.journal.records if "step" in record}
        if (None, event.epoch) in there:
            return
        # The metrics come last: an epoch that has them has all.
        for key, grid in event.images.items():
            if (key, event.epoch) not in there:
                with self.journal.keeping(f"{key}.png") as file:
                    Image.fromarray(_tile(grid).squeeze(-1) if grid.shape[2] == 1 else _tile(grid)).save(file)
                self._log_file(file, image=key, step=event.epoch)
        self.log_metrics(event.metrics, event.epoch)

    def log_curves(self) -> None:
        """Log the figure of the metrics reported so far, training against validation."""
        # A training need not wait for what draws before its first step.
        from elbolab.training.curves import draw_curves

        with self.journal.keeping("curves.png") as file:
            draw_curves([record["metrics"] for record in self.journal.records if "metrics" in record], file)
        self._log_file(file, "figures")

    def _log_file(self, file: Path, folder: str | None = None, **more: Any) -> None:
        self.journal.append(lane=FILES, file=self.journal.called(file), folder=folder, **more)


def _tile(grid: "Tensor") -> np.ndarray:
    """Images (rows, columns, C, H, W) in [0, 1] as one uint8 picture (height, width, C), a white pixel between them."""
    rows, columns, channels, height, width = grid.shape
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    pixels = (grid * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + 1), column * (width + 1)
            picture[top : top + height, left : left + width] = pixels[row, column]
    return picture


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

    A new one is nested in the one that is under way, if any. It ends FINISHED, or KILLED when it is interrupted, or
    FAILED with the reason as the tag ``failure``. Where the server does not answer it goes on all the same, and what it
    says stays in the folder ``unfinished``. ``package`` logs its model, where it has one.

    Raises UserError where the server refuses it.
    """
    run_id = run_id or (None if folder else os.environ.pop("MLFLOW_RUN_ID", None))
    own = {KIND: kind, "mlflow.runName": name, **code_tags(), **tags}
    begin: Record = {"tags": {key: redacted(value) for key, value in own.items()}, "params": params}
    journal = Journal(folder or UNFINISHED.absolute() / uuid4().hex)
    if journal.is_new:
        begin["run"] = {"id": run_id} if run_id else _new(name)
    if run_id or folder:
        begin["status"] = RUNNING
    journal.append(lane=VALUES, **begin)
    with _sending(journal, package) as tracker:
        _under_way.append(tracker)
        status = FAILED
        try:
            yield tracker
            status = FINISHED
        except (KeyboardInterrupt, SystemExit):
            status = KILLED
            raise
        except BaseException as error:
            tracker.set_tags({FAILURE: redacted(f"{type(error).__name__}: {error}")[:500]})
            raise
        finally:
            _under_way.pop()
            journal.append(lane=VALUES, status=status, waits=True)


@contextmanager
def reopen_run(run_id: str) -> Iterator[RunWriter]:
    """The writing end of a run that is not under way; its status stays."""
    journal = Journal(UNFINISHED.absolute() / uuid4().hex)
    journal.append(lane=VALUES, run={"id": run_id, "attached": True})
    with _sending(journal) as tracker:
        yield tracker


def nest_project_run(run_id: str, kind: str) -> None:
    """`mlflow run` made a run for a call that takes up ``run_id``: say so of it, and put it under that one."""
    if (call := os.environ.pop("MLFLOW_RUN_ID", None)) is not None:
        with reopen_run(call) as track:
            track.set_tags({PARENT: run_id, KIND: kind})


def _new(name: str) -> dict[str, Any]:
    """What a new run begins with."""
    above = mlflow.active_run()
    parent = _under_way[-1].id if _under_way else above.info.run_id if above else None
    where = {"experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")}
    if (known := os.environ.get("MLFLOW_EXPERIMENT_ID")) is not None:
        where = {"experiment_id": known}
    return {"name": name, "time": int(time.time() * 1000), "tags": resolve_tags(), "parent": parent, **where}


@contextmanager
def _sending(journal: Journal, package: Package | None = None) -> Iterator[RunWriter]:
    """Send what the tracker is given while the body lasts, and for a while after it."""
    tracker = RunWriter(journal, package)
    uploader = Uploader(journal, tracker.writer)
    patience, is_refused = END_SECONDS, False
    try:
        uploader.wait(START_SECONDS, lambda: tracker.writer.run_id is not None or uploader.problem is not None)
        if (problem := uploader.problem) and (is_refused := tracker.writer.run_id is None and refused(problem)):
            raise UserError(f"{address()} refuses the run: {reason(problem)}")
        yield tracker
    except (KeyboardInterrupt, SystemExit):
        patience = KILLED_SECONDS
        raise
    finally:
        if is_refused:
            uploader.stop()
            journal.close(remove=journal.is_new)
        else:
            if is_open(journal):
                # It was interrupted before it began.
                journal.append(lane=VALUES, status=KILLED, waits=True)
            uploader.wait(patience, lambda: tracker.writer.left() == 0 or refused(uploader.problem))
            uploader.stop()
            _say_what_is_left(tracker, uploader.problem)
            journal.close(is_done_with(journal, tracker.writer))


def _say_what_is_left(tracker: RunWriter, problem: Exception | None) -> None:
    if left := tracker.writer.left():
        why = f": {reason(problem)}" if problem else ""
        line = f"{left} records of run {tracker.id} are not on {address()}{why}; `elbolab sync` sends them"
        print(f"elbolab: {line} from {tracker.folder}", file=sys.stderr, flush=True)
    goes_on = is_training(tracker.folder) and PROCESSES not in begun(tracker.folder)[1]
    if goes_on and last_status(tracker.journal) != FINISHED:
        print(f"elbolab: `elbolab resume {tracker.id}` goes on with it", file=sys.stderr, flush=True)


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
