"""The training loop: epochs, validation, falling rates, checkpoints. What becomes of the figures is ``report``'s."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from elbolab.config.schema import Config
from elbolab.data.splits import Batch, Data, Split
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.models.objectives import Terms
from elbolab.support.errors import UserError
from elbolab.support.signals import Interruption, postponed
from elbolab.training import distributed
from elbolab.training.checkpoint import save_checkpoint
from elbolab.training.compiled_steps import compiled, is_worth_compiling
from elbolab.training.resume_state import Means, ResumeState

SNAPSHOT_EPOCHS = (1, 5, 10, 20, 30)
VALIDATION_BATCH = 500
SAMPLES = (4, 10)
SAMPLE_SEED = 0
CHECK_STEPS = 100


@dataclass(frozen=True)
class Event:
    """An epoch that ended: metrics by key, and at some epochs grids of images (rows, columns, C, H, W) in [0, 1].

    ``best`` says that no earlier epoch had a better validation score: the model is that of the last best epoch.
    """

    epoch: int
    epochs: int
    best: bool
    metrics: dict[str, float]
    images: dict[str, Tensor]
    seconds_left: float


@dataclass
class Step:
    """One step downhill, which waits to be taken: ``take`` does, unless ``elbolab.population`` takes many at once.

    ``kl_weight`` is that of ``Model.kl_weight``; ``checked`` names the step where its loss is looked at before the
    weights change.
    """

    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batch: Batch
    kl_weight: float
    checked: str | None
    terms: Terms = field(init=False)
    loss: Tensor = field(init=False)

    def take(self) -> None:
        """Compute the terms and the loss, and move the weights."""
        self.terms, self.loss = self.objective(self.batch, self.kl_weight)
        self.refuse_no_number()
        if self.optimizers:
            self.loss.backward()
        self.move()

    def refuse_no_number(self) -> None:
        """Raise UserError where the loss is looked at and is not finite."""
        # The mean over a share without images is not a number.
        if not self.checked or not len(self.batch) or math.isfinite(value := self.loss.item()):
            return
        terms = self.terms
        named = {"log p(x|z)": terms.log_px_z, "log p(z)": terms.log_pz, "log q(z|x)": terms.log_qz, "KL": terms.kl}
        wrong = [name for name, each in named.items() if not each.isfinite().all()]
        reason = f", because of {', '.join(wrong)}" if wrong else ""
        rate = next(_groups(self.optimizers))["lr"] if self.optimizers else 0
        raise UserError(f"the loss is {value} at {self.checked}{reason}; lower lr, which is {rate:g} there")

    def move(self) -> None:
        """Move the weights along the gradients that they have."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def train(model: Model, data: Data, report: Callable[[Event], None], folder: Path) -> None:
    """Train ``model`` on ``data`` as its config says, leaving last.safetensors and best.safetensors in ``folder``.

    It goes on from the newest intact state that an interrupted training left there, and reports the epochs from there
    on, some of them maybe again; on a CPU what comes out is what would have, bit for bit. Ctrl-C and SIGTERM are heeded
    after the step under way, with its state saved.

    The best epoch is the one of highest ``Model.score`` on the validation images: the ELBO at beta = 1, or iwae's own
    bound (for a classifier: lowest cross-entropy). On a CPU equal config and seed give equal weights, bit for bit.
    Raises UserError where the loss, before the weights have changed on a CPU, or a figure of an epoch is not finite.
    """
    with postponed() as interruption:
        for step in training(model, data, report, folder, interruption):
            step.take()


def training(
    model: Model, data: Data, report: Callable[[Event], None], folder: Path, interruption: Interruption
) -> Generator[Step, None, None]:
    """``train`` as the steps that it consists of: each must have been taken before the next is asked for."""
    config = model.config
    torch.manual_seed(config.seed + 1)
    shuffle = torch.Generator().manual_seed(config.seed)
    model.prepare(data)
    optimizers = model.optimizers()
    first_rates = [group["lr"] for group in _groups(optimizers)]
    states = ResumeState(folder, model, optimizers)
    at = states.restore()
    if len(at.order):
        shuffle.set_state(at.order)
    objective = distributed.parallel(Objective(model), [f"model.{name}" for name in model.sharded])
    model.train()
    of_whole = compiled(objective, model, data) if is_worth_compiling(model, data) else objective
    steps_an_epoch = math.ceil(len(data.train) / config.batch_size)
    first, started = at.epoch, time.perf_counter()

    for epoch in range(at.epoch, config.epochs + 1):
        at.epoch = epoch
        model.train()
        began, at.order = time.perf_counter() - at.seconds, shuffle.get_state()
        for batch in islice(data.train.batches(config.batch_size, shuffle), at.step, None):
            epochs = epoch - 1 + at.step / steps_an_epoch
            factor = rate_factor(config, epochs)
            for group, rate in zip(_groups(optimizers), first_rates, strict=True):
                group["lr"] = factor * rate
            # To read a number makes a GPU wait.
            is_checked = model.device.type == "cpu" or at.step % CHECK_STEPS == 0
            checked = f"step {at.step + 1} of epoch {epoch}" if is_checked else None
            with distributed.share(model.observe(batch), model.owners) as own:
                its = of_whole if len(own) == config.batch_size else objective
                step = Step(its, optimizers, own, model.kl_weight(epochs), checked)
                for _ in range(model.steps_per_visit):
                    yield step
            at.means.add(own, step.loss, model.metrics(step.terms), model.score(step.terms))
            at.step += 1
            at.seconds = time.perf_counter() - began
            if interruption or states.due():
                states.save(at)
            interruption.heed()
        train_metrics, _ = at.means.metrics("train")

        val_metrics, score = _validate(model, data.val, epoch)
        # Of most steps on a GPU, and of what the last one did to the weights, nothing is known before.
        for key, value in {**train_metrics, **val_metrics}.items():
            if not math.isfinite(value):
                raise UserError(f"{key} is {value} at the end of epoch {epoch}; lower lr")
        if improved := score > at.best:
            at.best = score
            save_checkpoint(folder / "best.safetensors", model, epoch)
        rates = {"train/lr": next(_groups(optimizers))["lr"]} if optimizers else {}
        speed = {"train/images_per_s": len(data.train) / at.seconds}
        metrics = {**train_metrics, **rates, **speed, **val_metrics}
        images = _snapshot(model, data) if epoch in SNAPSHOT_EPOCHS else {}
        left = (time.perf_counter() - started) / (epoch - first + 1) * (config.epochs - epoch)
        report(Event(epoch, config.epochs, improved, metrics, images, left))
        at.step, at.seconds, at.means = 0, 0.0, Means()
    save_checkpoint(folder / "last.safetensors", model, config.epochs)


def rate_factor(config: Config, epochs: float) -> float:
    """By what the first rates are multiplied, ``epochs`` into the training."""
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * epochs / config.epochs))
        case "staged":
            # Stage i begins after 1 + 3 + ... + 3^(i - 1) passes.
            return 10 ** (-sum(epochs >= (3**i - 1) / 2 for i in range(1, 8)) / 7)
        case "constant":
            return 1.0


class Objective(nn.Module):
    """The terms and the loss of a batch as one forward pass, which is what can be made parallel."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, kl_weight: float | Tensor) -> tuple[Terms, Tensor]:
        terms = self.model.terms(batch, self.model.train_samples)
        return terms, self.model.loss(terms, kl_weight)


def _groups(optimizers: list[torch.optim.Optimizer]) -> Iterator[dict]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def _validate(model: Model, split: Split, epochs: int) -> tuple[dict[str, float], float]:
    model.eval()
    means, kl_weight = Means(), model.kl_weight(epochs)
    for batch in split.batches(VALIDATION_BATCH):
        with distributed.share(model.observe(batch), model.owners) as own:
            model.refresh(own, kl_weight)
            with torch.no_grad():
                terms = model.terms(own, model.train_samples)
                means.add(own, model.loss(terms, kl_weight), model.metrics(terms), model.score(terms))
    return means.metrics(split.name)


def _snapshot(model: Model, data: Data) -> dict[str, Tensor]:
    if not isinstance(model, LatentModel):
        return {}
    images = {}
    # The same binarised digits at each epoch, by no draw of the training's.
    generator = torch.Generator(model.device).manual_seed(SAMPLE_SEED)
    for split in (data.train, data.val):
        batch = model.observe(split.one_per_class(), generator)
        with distributed.share(batch, model.owners) as own, torch.no_grad():
            reconstructions = model.reconstruct(model.posterior(own))
        reconstructions = distributed.assemble(reconstructions, model.owners(batch)).to(batch.x)
        images[f"reconstructions_{split.name}"] = torch.stack([batch.x, reconstructions])
    images["samples"] = model.sample(math.prod(SAMPLES), SAMPLE_SEED).unflatten(0, SAMPLES)
    return images
