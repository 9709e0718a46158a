"""What all candidates share: arguments, the data, the peers' nets and objectives, and the line that each prints."""

import argparse
import json
import math
import resource
import statistics
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elbolab.models.networks import ConvNets, ToImage, lenet

SHAPE = (1, 28, 28)
CLASSES = 10
# Training images beside 500 for validation, and of mnist5k 500 to test.
MOST_IMAGES = {"mnist": 59_500, "mnist5k": 4_000}
SIGMA = 0.4
LR = 1e-3
IW_SAMPLES = 5
# What -log N(x; mean, sigma^2) of an image has beside the squared error.
CONSTANT = math.prod(SHAPE) * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))


def arguments() -> argparse.Namespace:
    """The arguments of every candidate, which each uses as far as it needs them; sets threads and seed."""
    # The peers' environment has no click.
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vae")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data", help="npz file of the training images, labels and indices")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=200)
    parser.add_argument("--nets", default="plain", help="the peers': plain, or elbolab")
    parser.add_argument("--precision", default="auto", help="elbolab's")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-images", type=int, default=60_000)
    parser.add_argument("--most-epochs", type=int, default=1000)
    given = parser.parse_args()
    given.images = min(given.images, given.most_images, MOST_IMAGES[given.dataset])
    given.epochs = min(given.epochs, given.most_epochs)
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    return given


def load_array(given: argparse.Namespace, name: str) -> np.ndarray:
    """The images, labels or index of the training images."""
    with np.load(given.data) as arrays:
        array = arrays[name][: given.images]
    assert len(array) == given.images
    return array


def load_images(given: argparse.Namespace) -> Tensor:
    """The training images as floats in [0, 1], (N, C, H, W)."""
    return torch.from_numpy(load_array(given, "images")).float() / 255


def plain(net: nn.Sequential) -> nn.Sequential:
    """A net of the same weights by torch's own layers in torch's own order, as one writes it by hand."""
    *layers, last = net
    if isinstance(last, ToImage):
        own = nn.ConvTranspose2d(last.in_channels, last.out_channels, 4, stride=2, padding=1)
        own.load_state_dict(last.state_dict())
        last = own
    return nn.Sequential(*layers, last).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def make_nets(given: argparse.Namespace) -> tuple[nn.Sequential, nn.Sequential]:
    """Decoder and encoder of the default vae; made in elbolab's order, equal seeds give equal weights."""
    decoder = ConvNets().decoder(given.latent_dim, SHAPE)
    encoder = ConvNets().encoder(SHAPE, 2 * given.latent_dim)
    return (decoder, encoder) if given.nets == "elbolab" else (plain(decoder), plain(encoder))


class PlainVAE(nn.Module):
    """The default vae as one writes it by hand: a batch to its mean negative ELBO, in nats, constants included."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__()
        self.decoder, self.encoder = make_nets(given)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean, log_var = self.encoder(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        error = (self.decoder(z).sigmoid() - x).square().sum((1, 2, 3))
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)
        return (error / (2 * SIGMA**2) + kl).mean() + CONSTANT


class PlainCNN(nn.Module):
    """The classifier as one writes it by hand: a batch to its mean cross-entropy, in nats."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain(lenet(SHAPE, CLASSES))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


def plain_model(given: argparse.Namespace) -> nn.Module:
    """The model of this name, written by hand."""
    return PlainCNN() if given.model == "cnn" else PlainVAE(given)


def report_training(given: argparse.Namespace, seconds: list[float], loss: float, **more: float) -> None:
    """Print the speed of the epochs after the first, of one where there is no other, and the last epoch's mean loss."""
    speeds = [given.images / each for each in seconds[1:] or seconds]
    report(images_per_s=statistics.median(speeds), loss=loss, **more)


def report(**values: object) -> None:
    """Print the candidate's one line, with the most memory that was resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({**values, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))
