"""Lightning's Trainer over a DataLoader of float images in memory, with nothing on that a speed can do without."""

import time

import torch
from common import LR, arguments, load_array, load_images, plain_model, report_training
from lightning.pytorch import LightningModule, Trainer  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Module(LightningModule):
    """A model written by hand, with the seconds of each epoch and the summed loss of the last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seconds: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=LR)

    def on_train_epoch_start(self) -> None:
        self.began, self.total = time.perf_counter(), torch.zeros(())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        loss = self.model(x, y)
        self.total += loss.detach() * len(x)
        return loss

    def on_train_epoch_end(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    given = arguments()
    dataset = TensorDataset(load_images(given), torch.from_numpy(load_array(given, "labels")))
    module = Module(plain_model(given))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=given.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Workers would be other processes on the cores that compute.
    trainer.fit(module, DataLoader(dataset, batch_size=given.batch_size, shuffle=True))
    report_training(given, module.seconds, module.total.item() / len(dataset))


if __name__ == "__main__":
    main()
