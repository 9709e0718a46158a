"""pythae's own pipeline and trainer; its progress bar cannot be turned off."""

import time
from typing import Any

import torch
from common import CONSTANT, LR, SIGMA, arguments, load_images, report_training
from pythae.pipelines import TrainingPipeline  # pyright: ignore[reportMissingImports]
from pythae.trainers import BaseTrainerConfig  # pyright: ignore[reportMissingImports]
from pythae.trainers.training_callbacks import TrainingCallback  # pyright: ignore[reportMissingImports]
from pythae_nets import make_model


class Clock(TrainingCallback):
    """Seconds from an epoch's beginning to the end of its last step, and the summed negative ELBO of its images."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_step_begin(self, *_: Any, **__: Any) -> None:
        # Which is called once an epoch, while its end is called at every step.
        self.seconds.append(0.0)
        self.began, self.total = time.perf_counter(), torch.zeros(())

    def on_train_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds[-1] = time.perf_counter() - self.began

    def add(self, _: Any, inputs: Any, output: Any) -> None:
        """Both terms of the loss before they are weighted: what the trainer reports is the loss, of IWAE no bound."""
        if self.seconds:
            self.total += (output.recon_loss + output.reg_loss).detach() * len(inputs[0]["data"])


def main() -> None:
    given = arguments()
    model, clock = make_model(given), Clock()
    model.register_forward_hook(clock.add)
    config = BaseTrainerConfig(
        output_dir="pythae",
        num_epochs=given.epochs,
        learning_rate=LR,
        per_device_train_batch_size=given.batch_size,
        optimizer_cls="Adam",
        seed=given.seed,
        no_cuda=True,
    )
    images = load_images(given)
    TrainingPipeline(model=model, training_config=config)(train_data=images / SIGMA, callbacks=[clock])
    report_training(given, clock.seconds, clock.total.item() / len(images) + CONSTANT)


if __name__ == "__main__":
    main()
