"""A VAE with the spatial broadcast decoder of Watters et al. 2019, which sees z and the place at each pixel.

    elbolab train examples/own_model.py:BroadcastVAE --latent-dim 10
    elbolab evaluate latest:BroadcastVAE --images 50 --trust

z need not say where a pixel is. `elbolab vae --latent-dim 10` beside it tells what that gains or costs.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from elbolab.config.ranges import IntRange
from elbolab.data import DataSpec
from elbolab.models.vae import VAE, VAEConfig


class BroadcastConfig(VAEConfig):
    channels: Annotated[int, Field(gt=0), IntRange(8, 64, log=True)] = 32
    """Channels of the decoder's convolutions."""


class Broadcast(nn.Module):
    """Latent vectors (B, D) to (B, D + 2, H, W): z at every pixel, and the pixel's row and column in [-1, 1]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.sides = height, width

    def forward(self, z: Tensor) -> Tensor:
        lines = [torch.linspace(-1, 1, side, dtype=z.dtype, device=z.device) for side in self.sides]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(len(z), -1, -1, -1)
        return torch.cat([z[:, :, None, None].expand(-1, -1, *self.sides), places], 1)


class BroadcastVAE(VAE):
    """A vae that decodes without upsampling."""

    Config = BroadcastConfig

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        first = nn.Conv2d(config.latent_dim + 2, config.channels, 3, padding=1)
        second = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        last = nn.Conv2d(config.channels, spec.shape[0], 3, padding=1)
        self.decoder = nn.Sequential(Broadcast(*spec.shape[1:]), first, nn.ReLU(), second, nn.ReLU(), last)
