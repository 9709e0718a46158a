"""The training loop: epochs, validation, falling rates, checkpoints. What becomes of the figures is ``report``'s."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from elbolab import distributed
from elbolab.checkpoint import save_checkpoint
from elbolab.config import Config
from elbolab.data import Batch, Data, Split
from elbolab.errors import UserError
from elbolab.models.latent import LatentModel, Model
from elbolab.objectives import Terms

SNAPSHOT_EPOCHS = (1, 5, 10, 20, 30)
VALIDATION_BATCH = 500
SAMPLES = (4, 10)
SAMPLE_SEED = 0


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


def train(model: Model, data: Data, report: Callable[[Event], None], folder: Path) -> None:
    """Train ``model`` on ``data`` as its config says, leaving last.safetensors and best.safetensors in ``folder``.

    The best epoch is the one of highest ``Model.score`` on the validation images: the ELBO at beta = 1, or iwae's own
    bound (for a classifier: lowest cross-entropy). On a CPU equal config and seed give equal weights, bit for bit.
    Raises UserError where the loss is no longer a number.
    """
    config = model.config
    torch.manual_seed(config.seed + 1)
    shuffle = torch.Generator().manual_seed(config.seed)
    model.prepare(data)
    optimizers = model.optimizers()
    objective = distributed.parallel(_Objective(model), [f"model.{name}" for name in model.sharded])
    first_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    steps_an_epoch = math.ceil(len(data.train) / config.batch_size)
    best, started = -math.inf, time.perf_counter()

    for epoch in range(1, config.epochs + 1):
        model.train()
        train_means, epoch_started = _Means(), time.perf_counter()
        for step, batch in enumerate(data.train.batches(config.batch_size, shuffle)):
            epochs = epoch - 1 + step / steps_an_epoch
            factor = rate_factor(config, epochs)
            for group, rate in zip(_groups(optimizers), first_rates, strict=True):
                group["lr"] = factor * rate
            with distributed.share(model.observe(batch), model.owners) as own:
                for _ in range(model.steps_per_visit - 1):
                    _step(objective, own, epochs, optimizers)
                terms, loss = _step(objective, own, epochs, optimizers)
            train_means.add(own, loss, model.metrics(terms), model.score(terms))
        train_metrics, _ = train_means.metrics("train")
        seconds = time.perf_counter() - epoch_started
        if not math.isfinite(train_metrics["train/loss"]):
            raise UserError(f"the loss is {train_metrics['train/loss']} in epoch {epoch}; lower lr={config.lr:g}")

        val_metrics, score = _validate(model, data.val, epoch)
        save_checkpoint(folder / "last.safetensors", model, epoch, score)
        if improved := score > best:
            best = score
            save_checkpoint(folder / "best.safetensors", model, epoch, score)
        rates = {"train/lr": next(_groups(optimizers))["lr"]} if optimizers else {}
        speed = {"train/images_per_s": len(data.train) / seconds}
        images = _snapshot(model, data) if epoch in SNAPSHOT_EPOCHS else {}
        left = (time.perf_counter() - started) / epoch * (config.epochs - epoch)
        report(Event(epoch, config.epochs, improved, {**train_metrics, **rates, **speed, **val_metrics}, images, left))


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


class _Objective(nn.Module):
    """The terms and the loss of a batch as one forward pass, which is what can be made parallel."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, epochs: float) -> tuple[Terms, Tensor]:
        terms = self.model.terms(batch, self.model.train_samples)
        return terms, self.model.loss(terms, epochs)


def _step(
    objective: nn.Module, batch: Batch, epochs: float, optimizers: list[torch.optim.Optimizer]
) -> tuple[Terms, Tensor]:
    terms, loss = objective(batch, epochs)
    if optimizers:
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return terms, loss


def _groups(optimizers: list[torch.optim.Optimizer]) -> Iterator[dict]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)


class _Means:
    """Means over images, kept on the device: reading a number at each step would make the device wait."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, batch: Batch, loss: Tensor, metrics: dict[str, Tensor], score: Tensor) -> None:
        self.count += len(batch)
        # The mean over a share without images is not a number.
        summed = loss.detach() * len(batch) if len(batch) else loss.new_zeros(())
        sums = {"loss": summed, "score": score.detach().sum()}
        sums |= {key: value.detach().sum() for key, value in metrics.items()}
        self.sums = {key: value + self.sums[key] if self.sums else value for key, value in sums.items()}

    def metrics(self, split: str) -> tuple[dict[str, float], float]:
        count = distributed.total(torch.tensor(self.count)).item()
        means = {key: distributed.total(value).item() / count for key, value in self.sums.items()}
        score = means.pop("score")
        return {f"{split}/{key}": value for key, value in means.items()}, score


def _validate(model: Model, split: Split, epochs: int) -> tuple[dict[str, float], float]:
    model.eval()
    means = _Means()
    for batch in split.batches(VALIDATION_BATCH):
        with distributed.share(model.observe(batch), model.owners) as own:
            model.refresh(own, epochs)
            with torch.no_grad():
                terms = model.terms(own, model.train_samples)
                means.add(own, model.loss(terms, epochs), model.metrics(terms), model.score(terms))
    return means.metrics(split.name)


def _snapshot(model: Model, data: Data) -> dict[str, Tensor]:
    if not isinstance(model, LatentModel):
        return {}
    images = {}
    for split in (data.train, data.val):
        batch = split.one_per_class()
        with distributed.share(batch, model.owners) as own, torch.no_grad():
            reconstructions = model.reconstruct(model.posterior(own))
        reconstructions = distributed.assemble(reconstructions, model.owners(batch)).to(batch.x)
        images[f"reconstructions_{split.name}"] = torch.stack([batch.x, reconstructions])
    images["samples"] = model.sample(math.prod(SAMPLES), SAMPLE_SEED).unflatten(0, SAMPLES)
    return images
