"""Writing a run: its parameters, metrics by epoch, figures and artifacts, and how it ended."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, RunStatus, RunTag

from elbolab.records import KIND, prepare_store
from elbolab.report.curves import draw_curves

if TYPE_CHECKING:
    # Comparing runs takes no torch, whose import takes seconds.
    from torch import Tensor

    from elbolab.data import Data
    from elbolab.trainer import Event

FAILURE = "failure"


class Tracker:
    """The writing end of one run that is under way."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = mlflow.MlflowClient()
        self._history: list[dict[str, float]] = []

    def log_params(self, params: dict[str, str]) -> None:
        """Log the parameters that the run has not: `mlflow run -P` logs its own spelling of a value (1e-3) first."""
        present = self._client.get_run(self.id).data.params
        absent = [Param(key, value) for key, value in params.items() if key not in present]
        self._client.log_batch(self.id, params=absent)

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log all of ``metrics`` in one call."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set all of ``tags`` in one call."""
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        self._client.log_artifact(self.id, str(path), folder)

    def log_value(self, value: Any, path: str) -> None:
        """Keep a table as Parquet, named arrays as npz, anything else as JSON, as the artifact ``path``."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(path).name)
            if isinstance(value, pd.DataFrame):
                value.to_parquet(file, index=False)
            elif file.suffix == ".npz":
                np.savez_compressed(file, **value)
            else:
                file.write_text(json.dumps(value, indent=1))
            self.log_artifact(file, str(Path(path).parent) if "/" in path else None)

    def log_data(self, data: "Data") -> None:
        """Log the training images as the run's input, with the digest of all the content of all splits."""
        images, labels = data.train.images.cpu().numpy(), data.train.labels.cpu().numpy()
        dataset = mlflow.data.from_numpy(images, targets=labels, name=data.name, digest=data.spec.digest)  # pyright: ignore
        mlflow.log_input(dataset, context="training")

    def report(self, event: "Event") -> None:
        """Log an epoch: its metrics in one call, its images by step."""
        self._history.append(event.metrics)
        self.log_metrics(event.metrics, event.epoch)
        for key, grid in event.images.items():
            self._client.log_image(self.id, _tile(grid), key=key, step=event.epoch, synchronous=True)

    def log_curves(self) -> None:
        """Log the figure of the metrics reported so far, training against validation."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "curves.png")
            draw_curves(self._history, file)
            self.log_artifact(file, "figures")


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
def run(
    kind: str, name: str, params: dict[str, str], tags: dict[str, str], run_id: str | None = None
) -> Iterator[Tracker]:
    """A run under way: ``run_id`` taken up again, else the one that `mlflow run` made, else a new one.

    A new one is nested in the one that is active, if any. It ends FINISHED, or KILLED when it is interrupted, or FAILED
    with the reason as the tag ``failure``.
    """
    prepare_store()
    active = mlflow.start_run(run_id, run_name=name, nested=mlflow.active_run() is not None)
    tracker = Tracker(active.info.run_id)
    status = RunStatus.FAILED
    if FAILURE in active.data.tags:
        mlflow.MlflowClient().delete_tag(tracker.id, FAILURE)
    try:
        tracker.set_tags({KIND: kind, "mlflow.runName": name, **_code(), **tags})
        tracker.log_params(params)
        yield tracker
        status = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        status = RunStatus.KILLED
        raise
    except BaseException as error:
        tracker.set_tags({FAILURE: f"{type(error).__name__}: {error}"[:500]})
        raise
    finally:
        mlflow.end_run(RunStatus.to_string(status))


def _code() -> dict[str, str]:
    """The commit that this code stands at, and whether it has been changed since; nothing outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git.commit": git("rev-parse", "HEAD"), "git.dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
