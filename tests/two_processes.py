"""Trainings that one process and two must agree on; torchrun starts this file, and each process trains them all.

Starting costs far more than 41 images do. At the end the second process is killed while the first waits for it.
"""

import json
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from elbolab.data.splits import load_data
from elbolab.models import MODELS
from elbolab.training import distributed
from elbolab.training.backend import Backend
from elbolab.training.trainer import Event, train

# 41 images leave one in the last batch of 8: one process gets it, the other none.
SHARED: dict[str, Any] = {
    "train_size": 41,
    "val_size": 11,
    "test_size": 10,
    "batch_size": 8,
    "epochs": 3,
    # In bfloat16 the shares of a batch, rounded each for itself, differ by more from the whole.
    "precision": "float32",
}
AT_ONCE = {"patience": 1, "patience_steps": 0, "min_improvement": 1e9}
CASES: dict[str, dict[str, Any]] = {
    "cnn": {},
    "vae": {"latent_dim": 4},
    "vae bernoulli": {"latent_dim": 4, "likelihood": "bernoulli", "beta": 2.0, "beta_warmup": 2.0},
    "vae learned": {"latent_dim": 4, "sigma": "learned"},
    "iwae": {"latent_dim": 4, "iw_samples": 3, "gradient": "dreg"},
    "hierarchical": {"latent_dim": 4, "pca_epochs": 1},
    "semi_amortized": {"latent_dim": 4, "refine_steps": 2},
    "latent_opt": {"latent_dim": 4, "latent_init": "normal"},
    "latent_opt bernoulli": {"latent_dim": 4, "clip": 5.0, "likelihood": "bernoulli", "latent_steps": 3},
    "latent_opt logistic": {"latent_dim": 4, "likelihood": "discretised_logistic"},
    "ppca": {"latent_dim": 4, "epochs": 1},
    # Both must end with the fourth epoch.
    "vae plateau": {"latent_dim": 4, "schedule": "plateau", "epochs": 9, "beta_warmup": 0.0, **AT_ONCE},
}


def fit(case: str, folder: Path, backend: Backend | None = None) -> list[dict[str, float]]:
    """Train a case and return the metrics of its epochs, but for those of time."""
    kind = MODELS[case.split()[0]]
    config = kind.Config.parse({**SHARED, **CASES[case]})
    data = load_data(config.dataset, config.data_dir, config.train_size, config.val_size, config.test_size)
    torch.manual_seed(config.seed)
    events: list[Event] = []
    train(kind(config, data.spec), data, events.append, folder, backend)
    times = {"train/seconds", "train/images_per_s"}
    return [{key: value for key, value in event.metrics.items() if key not in times} for event in events]


def main() -> None:
    # As the command line does, so that what torchrun ends can say so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with distributed.group("cpu") as backend:
        assert backend is not None
        for case in CASES:
            Path(case).mkdir(exist_ok=True)
            history: list[dict[str, float]] = []
            backend.run(lambda case=case, history=history: history.extend(fit(case, Path(case), backend)))
            Path(case, f"{backend.rank}.json").write_text(json.dumps(history))
        with nullcontext() if backend.rank else _run():
            backend.run(lambda: _die(backend))


def _run() -> AbstractContextManager[Any]:
    from elbolab.tracking import run as tracking

    return tracking.start_run("train", "killed", {}, {})


def _die(backend: Backend) -> None:
    backend.sum(torch.zeros(()))
    if backend.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    backend.sum(torch.zeros(()))


if __name__ == "__main__":
    main()
