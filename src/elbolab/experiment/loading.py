"""What a job begins with: the device, the data that a config names, the trained model of a run, its classifier."""

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from elbolab.config.limits import expanded
from elbolab.config.schema import Config, default_data_dir
from elbolab.data.batches import Split
from elbolab.data.own_files import OWN, RESIZED
from elbolab.data.readers import DATASETS
from elbolab.data.splits import Data, load_data
from elbolab.models.base import Model
from elbolab.models.cnn import CNN
from elbolab.registry.packaging import load_model
from elbolab.support.errors import UserError
from elbolab.support.user_code import Trust
from elbolab.tracking import mlflow_reader
from elbolab.tracking.keys import CLASS_NAMES, CLASSES
from elbolab.tracking.run_names import find_id


def choose_device(wanted: str) -> str:
    """The device to compute on; raises UserError where the wanted one is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda', but CUDA is not available; use device=cpu or device=auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


# A server cuts a longer one.
LONGEST_TAG = 8000


def data_tags(data: Data) -> dict[str, str]:
    """The tags by which a run says what it was trained on."""
    tags = {"data.name": data.name, "data.digest": data.spec.digest, CLASSES: str(data.spec.classes)}
    if data.names and len(names := json.dumps(data.names)) <= LONGEST_TAG:
        tags[CLASS_NAMES] = names
    return tags


# By which the clock of a file system may be late: a file that changed so lately may change again unnoticed.
LATE_SECONDS = 2

_last: tuple[tuple[Any, ...], list[tuple[int, ...]], Data] | None = None


def load_for(config: Config, device: str = "cpu") -> Data:
    """The data that ``config`` names, on ``device``; raises UserError where they cannot be read or downloaded.

    The trainings of one process, a study's above all, mostly share their data: those that were read last are not read
    again unless one of their files has changed since.
    """
    global _last
    sizes = config.train_size, config.val_size, config.test_size
    wanted = config.dataset, config.data_dir, *sizes, config.split_seed, config.binarise, config.image_size, device
    # Which a notebook may define anew.
    reader = DATASETS.get(config.dataset.partition(":")[0])
    if _last is not None and _last[:2] == ((wanted, reader), _states(_last[2])):
        return _last[2]
    _last, began = None, time.time()
    data = load_data(*wanted)
    states = _states(data)
    if states and max(state[0] for state in states) < (began - LATE_SECONDS) * 1e9:
        _last = (wanted, reader), states, data
    return data


def _states(data: Data) -> list[tuple[int, ...]]:
    """What tells whether one of its files has changed, the time of that first; nothing where one is not there."""
    with suppress(OSError):
        found = map(os.stat, data.files)
        return [(file.st_ctime_ns, file.st_mtime_ns, file.st_size, file.st_ino) for file in found]
    return []


def load_run(run_id: str, device: str, trust: Trust = False) -> tuple[Model, Data]:
    """The trained model of a run and the data that it was trained on; raises UserError where these are others now.

    Where the folder of its data is not there, as on another machine, they are looked for in this machine's own.
    """
    model = load_model(run_id, device, trust)
    data = load_for(_on_this_machine(model.config), device)
    if data.spec.digest != model.spec.digest:
        raise UserError(
            f"run {run_id!r} was trained on data with digest {model.spec.digest}, but {data.name} now has the digest "
            f"{data.spec.digest}; bring back the files that it was trained on"
        )
    return model, data


def _on_this_machine(config: Config) -> Config:
    return config if os.path.isdir(config.data_dir) else config.model_copy(update={"data_dir": default_data_dir()})


# Of the name of a data set in the keys of metrics, of which a server has at most 250 characters.
LONGEST_NAME = 100


def load_others(datasets: Sequence[str], config: Config, data: Data, device: str = "cpu") -> dict[str, Split]:
    """The test images of other ``datasets`` by the names that metrics give them: those of a training on them that cuts
    and binarises as ``config`` does, whose own ``data`` have the same shape.

    Raises UserError where one cannot be read or has another shape, and where two have the same name.
    """
    names = [_name_in_metrics(dataset) for dataset in datasets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"ood={','.join(datasets)}: metrics would call two of them {twice[0]!r}; give each once, and files by "
            "different names"
        )
    config, (_, height, width) = _on_this_machine(config), data.spec.shape
    found = {}
    for name, dataset in zip(names, datasets, strict=True):
        size = height if dataset.partition(":")[0] in RESIZED and height == width else None
        settings = {"split_seed": config.split_seed, "binarise": config.binarise, "image_size": size}
        try:
            other = load_data(dataset, config.data_dir, **settings, device=device)
        except UserError as error:
            raise UserError(f"ood={dataset!r}, beside {data.name}: {error}") from error
        if other.spec.shape != data.spec.shape:
            raise UserError(
                f"ood={dataset!r} has images of shape {other.spec.shape}, but {data.name} has {data.spec.shape}; name "
                "data of the same channels, height and width"
            )
        found[name] = other.test
    return found


def _name_in_metrics(dataset: str) -> str:
    """What the keys of metrics call a dataset: its name, or that of its file or folder, in letters and digits."""
    kind, _, path = dataset.partition(":")
    name = expanded(Path(path)).absolute().stem if kind in OWN else dataset
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:LONGEST_NAME] or kind


def load_classifier(chosen: str | None, data: Data, device: str) -> tuple[str, CNN] | None:
    """The cnn of the run ``chosen``, else of the newest finished cnn run on the same data, else none.

    Raises UserError where the chosen one is no cnn or was trained on other data: it would judge images by classes that
    they do not have, or by what it saw of the test images.
    """
    if chosen is None:
        newest = mlflow_reader.find_runs(params={"model": "cnn"}, tags={"data.digest": data.spec.digest}, limit=1)
        if not newest:
            return None
        chosen = newest[0].id
    chosen = find_id(chosen)
    model = load_model(chosen, device)
    if not isinstance(model, CNN):
        raise UserError(f"classifier={chosen!r} is the run of another model than cnn; name a cnn's run")
    for name in ("shape", "classes", "digest"):
        if (theirs := getattr(model.spec, name)) != (own := getattr(data.spec, name)):
            raise UserError(
                f"classifier={chosen!r} was trained on data of {name} {theirs}, but {data.name} has {name} {own}; name "
                "a cnn of the same data, or none for the newest of these"
            )
    return chosen, model
