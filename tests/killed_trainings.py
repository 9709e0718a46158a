"""Trainings that are killed and gone on with: `killed_trainings.py FOLDER MODEL TIMES WHEN SEED EPOCHS`.

Each is a process forked from this one, which imports torch once for all of them. TIMES kills come at random moments:
WHEN is `anywhere`, or `writing` for those within the writing of a state. Prints what came of each training as JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import torch

from elbolab.experiment.train import resume, train_model
from elbolab.models import MODELS
from elbolab.registry.packaging import log_model
from elbolab.report.fetch import PICTURES
from elbolab.tracking import artifacts, mlflow_reader
from elbolab.tracking.journal import journals
from elbolab.tracking.offline import UNFINISHED, begun, send_unfinished
from elbolab.training import checkpoint, resume_state

FIELDS: dict[str, dict[str, Any]] = {
    "vae": {"likelihood": "bernoulli", "latent_dim": 8},
    "latent_opt": {"latent_dim": 8, "latent_init": "normal"},
    "cnn": {},
}
SHARED = {"train_size": 120, "val_size": 20, "test_size": 20, "batch_size": 16}


def killed(work: Callable[[], object], seconds: float | None) -> bool:
    """Do ``work`` in a process of its own that is killed after so many seconds; whether it got to its end before."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + (seconds or 300)
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    if os.WIFEXITED(found[1]) and os.WEXITSTATUS(found[1]):
        raise SystemExit("a training failed")
    return os.WIFEXITED(found[1])


def die_while_writing(moments: random.Random) -> None:
    """Have this process kill itself in the middle of the writing of one of its next states."""
    left, where = moments.randint(1, 12), moments.choice(["half", "unsynced", "unnamed", "named"])
    save, rename = checkpoint.save_file, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_file(tensors: Any, path: Path, header: Any) -> None:
        nonlocal left
        save(tensors, path, header)
        left -= "state-" in path.name
        if left == 0 and where == "half":
            os.truncate(path, path.stat().st_size // 2)
        if left == 0 and where in ("half", "unsynced"):
            die()

    def replace(part: Path, path: Path) -> None:
        if left == 0 and where == "unnamed":
            die()
        rename(part, path)
        if left == 0 and where == "named":
            die()

    checkpoint.save_file, os.replace = save_file, replace


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Of names and bytes; safetensors writes its header in no certain order."""
    content = [key.encode() + value.reshape(-1).numpy().tobytes() for key, value in sorted(tensors.items())]
    return hashlib.sha256(b"".join(content)).hexdigest()


def outcome(run_id: str) -> dict[str, Any]:
    """What the server has of a run: weights and pictures as digests, and each metric but those of time by step."""
    run = mlflow_reader.get_run(run_id)
    client = mlflow.MlflowClient()
    return {
        "status": run.status,
        "weights": [
            digest(artifacts.read(run_id, f"checkpoints/{name}.safetensors", checkpoint.read)[0])
            for name in ("last", "best")
        ],
        "history": {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
            for key in sorted(run.metrics)
            if key not in ("train/seconds", "train/images_per_s")
        },
        "images": [
            (key, step, hashlib.sha256(content).hexdigest())
            for key in PICTURES
            for step, content in artifacts.step_images(run_id, key).items()
        ],
    }


def newest_outcome() -> dict[str, Any]:
    """The outcome of the newest finished run, read in a process of its own: a database survives no fork."""
    killed(lambda: Path("outcome.json").write_text(json.dumps(outcome(mlflow_reader.find_runs(limit=1)[0].id))), None)
    return json.loads(Path("outcome.json").read_text())


def main() -> None:
    place, model, times, when, seed, epochs = sys.argv[1:]
    os.chdir(place)
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    # A state at each step, so that every kill finds another.
    resume_state.LEAST_SECONDS = resume_state.TIMES_ITS_COST = 0
    moments = random.Random(int(seed))
    config = MODELS[model].Config.parse({**SHARED, **FIELDS[model], "epochs": int(epochs)})

    def fresh() -> str:
        return train_model(model, config)

    def attempt(work: Callable[[], object]) -> bool:
        """Whether the work came to its end before it was killed."""
        if kills == int(times):
            return killed(work, None)
        if when == "anywhere":
            return killed(work, moments.uniform(0, seconds))
        own = random.Random(moments.random())
        return killed(lambda: (die_while_writing(own), work()), None)

    kills = resumed = with_state = 0
    began = time.monotonic()
    killed(fresh, None)
    seconds = time.monotonic() - began
    expected, found = newest_outcome(), []
    while kills < int(times):
        before, work, folder = set(journals(UNFINISHED)), fresh, None
        while not attempt(work):
            kills += 1
            if folder is not None and not folder.exists():
                # It had come to its end, and only its process had not.
                break
            for left in set(journals(UNFINISHED)) - before:
                if any(begun(left)):
                    work, folder = partial(resume, left.name), left
            resumed += folder is not None
            with_state += folder is not None and any(folder.glob(resume_state.PATTERN))
        found.append(newest_outcome())
    # What was killed before it had said anything leaves a folder with nothing in it.
    killed(partial(send_unfinished, log_model), None)
    counts = {"kills": kills, "resumed": resumed, "with_state": with_state}
    print(json.dumps({"expected": expected, "found": found, **counts, "seconds": seconds}))


if __name__ == "__main__":
    main()
