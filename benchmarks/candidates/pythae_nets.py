"""pythae's VAE and IWAE with elbolab's nets and observation model plugged in."""

import argparse
import math

from common import IW_SAMPLES, SHAPE, SIGMA, make_nets
from pythae.models import (  # pyright: ignore[reportMissingImports]
    IWAE,
    VAE,
    BaseAE,
    IWAEConfig,
    VAEConfig,
)
from pythae.models.base.base_utils import ModelOutput  # pyright: ignore[reportMissingImports]
from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

# pythae knows the Gaussian with sigma = 1 only: it gets the pixels in units of sigma, and the nets see them in [0, 1].
# The density of the pixels themselves is less by this.
LOG_SCALE = math.prod(SHAPE) * math.log(SIGMA)


class Encoder(BaseEncoder):
    def __init__(self, net: nn.Module) -> None:
        BaseEncoder.__init__(self)
        self.net = net

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_var = self.net(x * SIGMA).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    def __init__(self, net: nn.Module) -> None:
        BaseDecoder.__init__(self)
        self.net = net

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z).sigmoid() / SIGMA)


def make_model(given: argparse.Namespace) -> BaseAE:
    decoder, encoder = make_nets(given)
    shared = {"input_dim": SHAPE, "latent_dim": given.latent_dim}
    if given.model == "iwae":
        return IWAE(IWAEConfig(**shared, number_samples=IW_SAMPLES), Encoder(encoder), Decoder(decoder))
    return VAE(VAEConfig(**shared), Encoder(encoder), Decoder(decoder))
