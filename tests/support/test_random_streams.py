"""Whose random numbers a training draws: those of its seed, whatever else this process does."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from elbolab import load_model
from elbolab.config.schema import Config, EvaluateConfig
from elbolab.experiment.evaluate import evaluate_run
from elbolab.experiment.train import train_model
from elbolab.models import MODELS
from elbolab.tracking import mlflow_reader
from elbolab.tracking.keys import PARENT

SIZES = {"train_size": 40, "val_size": 10, "test_size": 10, "batch_size": 8}
CNN = MODELS["cnn"].Config.parse({"epochs": 1, **SIZES})
VAE = MODELS["vae"].Config.parse({"latent_dim": 4, "epochs": 3, **SIZES})


def weights(run_id: str) -> list[torch.Tensor]:
    return list(load_model(run_id).state_dict().values())


def next_numbers() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()


def seed() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def test_the_caller_s_streams_go_on_as_if_nothing_had_been_drawn(store: Path):
    runs: list[str] = []
    calls: list[Callable[[], object]] = [
        lambda: runs.append(train_model("vae", VAE)),
        lambda: runs.append(train_model("cnn", CNN)),
        lambda: evaluate_run(runs[0], EvaluateConfig(images=10, budget=1, simulated=2, classifier=runs[1])),
        lambda: load_model(runs[0]),
    ]
    seed()
    expected = [next_numbers() for _ in calls]
    seed()
    for call, numbers in zip(calls, expected, strict=True):
        call()
        assert next_numbers() == numbers


def test_trainings_in_threads_are_those_one_after_another(store: Path):
    configs = [VAE.model_copy(update={"seed": number}) for number in range(2)]
    serial = [weights(train_model("vae", config)) for config in configs]
    found: dict[int, str] = {}

    def work(config: Config, number: int) -> None:
        found[number] = train_model("vae", config)

    threads = [threading.Thread(target=work, args=(config, number)) for number, config in enumerate(configs)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load_model(mlflow_reader.find_runs(limit=1)[0].id)
        threads[0].join(0.2)
        threads[1].join(0.2)
    for number, before in enumerate(serial):
        for one, other in zip(weights(found[number]), before, strict=True):
            assert torch.equal(one, other)
        # Neither is nested in the other, which it has nothing to do with.
        assert PARENT not in mlflow_reader.get_run(found[number]).tags
