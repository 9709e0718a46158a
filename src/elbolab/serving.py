"""The model as MLflow serves it: images in, reconstructions or class probabilities out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from elbolab.checkpoint import load_checkpoint
from elbolab.data import Batch
from elbolab.models.cnn import CNN
from elbolab.models.latent import LatentModel


class Served(PythonModel):
    """``predict`` takes images uint8 (N, H, W, C): (N, classes) from a cnn, else expected images (N, H, W, C)."""

    def load_context(self, context: Any) -> None:
        self.model = load_checkpoint(Path(context.artifacts["checkpoint"]))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2).float() / 255
        if isinstance(self.model, CNN):
            with torch.no_grad():
                return self.model.logits(x).softmax(-1).numpy()
        assert isinstance(self.model, LatentModel)
        nothing = torch.zeros(len(x), dtype=torch.int64)
        generator = torch.Generator().manual_seed(0)
        batch = self.model.observe(Batch(x, nothing, nothing, "new", ""), generator)
        return self.model.reconstruct(self.model.infer(batch, generator)).permute(0, 2, 3, 1).numpy()


set_model(Served())
