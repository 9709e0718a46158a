"""Pictures of a latent-variable model: what it makes of some images, and samples; they draw no number of a training."""

import math

import torch
from torch import Tensor

from elbolab.data.batches import Data
from elbolab.models.base import Model
from elbolab.models.latent import LatentModel
from elbolab.training.backend import Backend

PICTURE_EPOCHS = (1, 5, 10, 20, 30, 50, 100, 200, 500)
"""The epochs whose pictures a training reports; those of its last and best epoch are taken from their checkpoints."""
SAMPLES = (4, 10)
SEED = 0


def take_pictures(model: Model, data: Data, backend: Backend) -> dict[str, Tensor]:
    """Grids of images (rows, columns, C, H, W) in [0, 1] by name: originals above reconstructions, and samples.

    Equal weights give equal pictures. A model without a decoder has none.
    """
    if not isinstance(model, LatentModel):
        return {}
    images = {}
    # The same binarised images at each epoch, and the same draws of a refinement.
    generator = torch.Generator(model.device).manual_seed(SEED)
    for split in (data.train, data.val):
        batch = model.observe(split.examples(), generator)
        with backend.share(model, batch) as own, torch.no_grad():
            reconstructions = model.reconstruct(model.posterior(own, generator))
        reconstructions = backend.gather(reconstructions, model, batch).to(batch.x)
        images[f"reconstructions_{split.name}"] = torch.stack([batch.x, reconstructions])
    images["samples"] = model.sample(math.prod(SAMPLES), SEED).unflatten(0, SAMPLES)
    return images
