"""What a job begins with: the device, the data that a config names, and the trained model of a run."""

import os
from functools import lru_cache

import torch

from elbolab.config.schema import Config, default_data_dir
from elbolab.data.splits import Data, load_data
from elbolab.models.base import Model
from elbolab.registry.packaging import load_model
from elbolab.support.errors import UserError


def choose_device(wanted: str) -> str:
    """The device to compute on; raises UserError where the wanted one is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda', but CUDA is not available; use device=cpu or device=auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


# The trainings of one process, a study's above all, mostly share their data.
_load = lru_cache(maxsize=1)(load_data)


def load_for(config: Config, device: str = "cpu") -> Data:
    """The data that ``config`` names, on ``device``; raises UserError where they cannot be read or downloaded."""
    sizes = config.train_size, config.val_size, config.test_size
    return _load(config.dataset, config.data_dir, *sizes, config.split_seed, config.binarise, device)


def load_run(run_id: str, device: str) -> tuple[Model, Data]:
    """The trained model of a run and the data that it was trained on; raises UserError where these are others now.

    Where the folder of its data is not there, as on another machine, they are looked for in this machine's own.
    """
    model = load_model(run_id, device)
    config = model.config
    if not os.path.isdir(config.data_dir):
        config = config.model_copy(update={"data_dir": default_data_dir()})
    data = load_for(config, device)
    if data.spec.digest != model.spec.digest:
        raise UserError(
            f"run {run_id!r} was trained on data with digest {model.spec.digest}, but {data.name} now has the digest "
            f"{data.spec.digest}; bring back the files that it was trained on"
        )
    return model, data
