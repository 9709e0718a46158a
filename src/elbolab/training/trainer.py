"""The training loop: epochs, validation, checkpoints. What becomes of the figures is ``report``'s."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from elbolab.data.batches import Data, Split
from elbolab.models.base import Model
from elbolab.support.errors import UserError
from elbolab.support.signals import postponed
from elbolab.training.backend import Backend, Step
from elbolab.training.checkpoint import save_checkpoint
from elbolab.training.pictures import PICTURE_EPOCHS, take_pictures
from elbolab.training.resume_state import Means, ResumeState
from elbolab.training.schedule import Schedule

VALIDATION_BATCH = 500
CHECK_STEPS = 100


@dataclass(frozen=True)
class Event:
    """An epoch that ended: metrics by key, and at some epochs grids of images (rows, columns, C, H, W) in [0, 1].

    ``best`` says that no earlier epoch had a better validation score: the model is that of the last best epoch.
    ``epochs`` is how many there will be; where ``is_open`` that is not known, and it is the most. ``converged`` is that
    of ``Schedule``, given with the last epoch alone.
    """

    epoch: int
    epochs: int
    is_open: bool
    converged: bool | None
    best: bool
    metrics: dict[str, float]
    images: dict[str, Tensor]
    seconds_left: float


def train(
    model: Model, data: Data, report: Callable[[Event], None], folder: Path, backend: Backend | None = None
) -> None:
    """Train ``model`` on ``data`` as its config says, leaving last.safetensors and best.safetensors in ``folder``.

    It goes on from the newest intact state that an interrupted training left there, and reports the epochs from there
    on, some of them maybe again; on a CPU what comes out is what would have, bit for bit. Ctrl-C and SIGTERM are heeded
    after the step under way, with its state saved. It runs on ``backend``, by default on one process that takes each
    step as it comes.

    The best epoch is the one of highest ``Model.score`` on the validation images: the ELBO at beta = 1, or iwae's own
    bound (for a classifier: lowest cross-entropy). When the training ends is ``Schedule``'s to say, by that score. On a
    CPU equal config and seed give equal weights, bit for bit.
    Raises UserError where the loss, before the weights have changed on a CPU, or a figure of an epoch is not finite,
    where ``folder`` holds the state of a training of another config, and where a file cannot be written there.
    """
    backend = backend or Backend()
    with postponed() as interruption:
        config = model.config
        torch.manual_seed(config.seed + 1)
        shuffle = torch.Generator().manual_seed(config.seed)
        # Which may take minutes.
        with interruption.at_once():
            model.prepare(data)
        model.train()
        objective = backend.begin(model, data)
        optimizers = model.optimizers()
        first_rates = [group["lr"] for group in _groups(optimizers)]
        states = ResumeState(folder, model, optimizers)
        at = states.restore()
        if len(at.order):
            shuffle.set_state(at.order)
        visits = math.ceil(len(data.train) / config.batch_size)
        steps_an_epoch = visits * model.steps_per_visit if optimizers else 0
        schedule = Schedule(config, model.kl_weight, not optimizers, at.scores, steps_an_epoch)
        at.scores = schedule.scores
        first, started = at.epoch, time.perf_counter()

        while (epoch := at.epoch) <= schedule.last:
            model.train()
            model.begin_epoch(epoch)
            began, at.order = time.perf_counter() - at.seconds, shuffle.get_state()
            for batch in islice(data.train.batches(config.batch_size, shuffle), at.step, None):
                epochs = epoch - 1 + at.step / visits
                factor = schedule.factor(epochs)
                for group, rate in zip(_groups(optimizers), first_rates, strict=True):
                    group["lr"] = factor * rate
                # To read a number makes a GPU wait.
                is_checked = model.device.type == "cpu" or at.step % CHECK_STEPS == 0
                checked = f"step {at.step + 1} of epoch {epoch}" if is_checked else None
                with backend.share(model, model.observe(batch)) as own:
                    step = Step(objective, optimizers, own, model.kl_weight(epochs), checked, config.clip)
                    for _ in range(model.steps_per_visit):
                        backend.step(step)
                at.means.add(own, step.loss, model.metrics(step.terms), model.score(step.terms))
                at.step += 1
                at.seconds = time.perf_counter() - began
                # A training of several processes cannot be resumed.
                if interruption or (backend.processes == 1 and states.due()):
                    states.save(at)
                interruption.heed()
            train_metrics, _ = at.means.metrics("train", backend.sum)

            val_metrics, score = _validate(model, data.val, epoch, backend)
            # Of most steps on a GPU, and of what the last one did to the weights, nothing is known before.
            for key, value in {**train_metrics, **val_metrics}.items():
                if not math.isfinite(value):
                    raise UserError(f"{key} is {value} at the end of epoch {epoch}; lower lr")
            if improved := score > at.best:
                at.best = score
                _save(folder / "best.safetensors", model, epoch, backend)
            schedule.add(score)
            at.seconds_before += at.seconds
            rates = {"train/lr": next(_groups(optimizers))["lr"]} if optimizers else {}
            cost = {"train/steps": epoch * steps_an_epoch, "train/seconds": at.seconds_before}
            speed = {"train/images_per_s": len(data.train) / at.seconds}
            metrics = {**train_metrics, **rates, **cost, **speed, **val_metrics}
            images = take_pictures(model, data, backend) if epoch in PICTURE_EPOCHS else {}
            left = (time.perf_counter() - started) / (epoch - first + 1) * (schedule.last - epoch)
            converged = schedule.converged if epoch == schedule.last else None
            report(Event(epoch, schedule.last, schedule.is_open, converged, improved, metrics, images, left))
            at.epoch, at.step, at.seconds, at.means = epoch + 1, 0, 0.0, Means()
        _save(folder / "last.safetensors", model, schedule.last, backend)


def _groups(optimizers: list[torch.optim.Optimizer]) -> Iterator[dict]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def _save(path: Path, model: Model, epoch: int, backend: Backend) -> None:
    # In which every process has its part.
    weights = backend.weights(model)
    if not backend.rank:
        save_checkpoint(path, model, epoch, weights)


def _validate(model: Model, split: Split, epochs: int, backend: Backend) -> tuple[dict[str, float], float]:
    model.eval()
    means, kl_weight = Means(), model.kl_weight(epochs)
    for batch in split.batches(VALIDATION_BATCH):
        with backend.share(model, model.observe(batch)) as own:
            model.refresh(own, kl_weight)
            with torch.no_grad():
                terms = model.terms(own, model.train_samples)
                means.add(own, model.loss(terms, kl_weight), model.metrics(terms), model.score(terms))
    return means.metrics(split.name, backend.sum)
