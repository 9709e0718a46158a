"""Network bodies: images to features and latent vectors to images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elbolab.support.errors import UserError
from elbolab.support.random_streams import draw
from elbolab.support.user_code import find, is_word

Shape = tuple[int, int, int]
# Nothing else reads what a layer gives; to keep it beside its positive part takes log p(x) a thirtieth longer.
relu = partial(nn.ReLU, inplace=True)
# A gated linear unit multiplies one half of what it is given by the sigmoid of the other (Dauphin et al. 2017, eq. 1).
ACTIVATIONS = {"relu": relu, "tanh": nn.Tanh, "elu": nn.ELU, "glu": nn.GLU}

# The least side that two halvings, the fewest by default, leave 2 pixels of.
LEAST_SIDE = 8
# Automatic halvings go on to at most so many pixels.
HALVED_TO = 8
# Each halving doubles the channels, up to so many times those of the first convolution.
WIDER_AT_MOST = 4
CONV_FEATURES = 256


class Nets(Protocol):
    """Of one kind of nets an encoder and a decoder, for images of a shape (C, H, W).

    A decoder's shape (P C, H, W) is that of P parameters of each number of an image, which the likelihood says.
    """

    def encoder(self, shape: Shape, outputs: int) -> nn.Module:
        """Images (B, C, H, W) to (B, outputs); raises UserError for a shape that it cannot take."""
        ...

    def decoder(self, latents: int, shape: Shape) -> nn.Module:
        """Latent vectors (B, latents) to unbounded activations (B, *shape), the encoder's mirror."""
        ...


@dataclass(frozen=True)
class ConvNets:
    """``depth`` strided convolutions of ``width`` channels and more, and a dense layer of 256.

    Each halves the sides; all but the first double the channels, up to four times ``width``. Where 2^depth does not
    divide the sides, the encoder pads images with zeros to the next multiples, equally on both sides or with one pixel
    more at the right and the bottom, and the decoder crops as much. A ``depth`` of None is ``automatic_depth``.
    """

    activation: str = "relu"
    depth: int | None = None
    width: int = 32

    def encoder(self, shape: Shape, outputs: int) -> nn.Sequential:
        """Images (B, C, H, W) to (B, outputs); raises UserError for sides that it cannot halve so often."""
        act, channels, (height, width) = ACTIVATIONS[self.activation], self._channels(shape), self._least(shape)
        halvings = [
            layer
            for before, after in pairwise((shape[0], *channels))
            for layer in (nn.Conv2d(before, after, 4, stride=2, padding=1), act())
        ]
        return _channels_last(
            *([nn.ZeroPad2d(margins)] if any(margins := self._margins(shape)) else []),
            *halvings,
            nn.Flatten(),
            nn.Linear(channels[-1] * height * width, CONV_FEATURES),
            act(),
            LatentLinear(CONV_FEATURES, outputs),
        )

    def decoder(self, latents: int, shape: Shape) -> nn.Sequential:
        """Latent vectors (B, latents) to unbounded activations (B, C, H, W); raises UserError as ``encoder``."""
        act, channels, (height, width) = ACTIVATIONS[self.activation], self._channels(shape), self._least(shape)
        first, dense = LatentLinear(latents, CONV_FEATURES), nn.Linear(CONV_FEATURES, channels[-1] * height * width)
        doublings = [
            layer
            for before, after in pairwise(reversed(channels))
            for layer in (nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), act())
        ]
        left, _, top, _ = margins = self._margins(shape)
        return _channels_last(
            *(first, act(), dense, act(), nn.Unflatten(1, (channels[-1], height, width))),
            *doublings,
            ToImage(channels[0], shape[0], 4, stride=2, padding=1),
            *([Crop(top, left, shape[1], shape[2])] if any(margins) else []),
        )

    def depth_for(self, shape: Shape) -> int:
        """How often images of this shape are halved; raises UserError where that is too often for their sides."""
        _, height, width = shape
        refuse_small(shape, "--net mlp takes any, and --image-size resizes pictures")
        depth = automatic_depth(height, width) if self.depth is None else self.depth
        if 2**depth >= min(height, width):
            raise UserError(
                f"depth={depth} leaves images of {height} by {width} fewer than 2 pixels a side; it must be at most "
                f"{_most_halvings(min(height, width))}"
            )
        return depth

    def _channels(self, shape: Shape) -> list[int]:
        return [self.width * min(2**level, WIDER_AT_MOST) for level in range(self.depth_for(shape))]

    def _least(self, shape: Shape) -> tuple[int, int]:
        """The sides after all halvings."""
        unit = 2 ** self.depth_for(shape)
        return -(-shape[1] // unit), -(-shape[2] // unit)

    def _margins(self, shape: Shape) -> tuple[int, int, int, int]:
        """What is padded at the left, right, top and bottom."""
        unit = 2 ** self.depth_for(shape)
        across, down = -shape[2] % unit, -shape[1] % unit
        return across // 2, across - across // 2, down // 2, down - down // 2


@dataclass(frozen=True)
class DenseNets:
    """Two dense layers that are ``hidden`` wide each way, for images of any size (Burda et al. 2016, section 5).

    With gated linear units they are those of Tomczak & Welling 2018, section 5.
    """

    activation: str = "relu"
    hidden: int = 200

    def encoder(self, shape: Shape, outputs: int) -> nn.Sequential:
        """Images (B, C, H, W) to (B, outputs)."""
        act, hidden = ACTIVATIONS[self.activation], self.hidden
        first, second = nn.Linear(math.prod(shape), self._given), nn.Linear(hidden, self._given)
        return nn.Sequential(nn.Flatten(), first, act(), second, act(), LatentLinear(hidden, outputs))

    def decoder(self, latents: int, shape: Shape) -> nn.Sequential:
        """Latent vectors (B, latents) to unbounded activations (B, C, H, W)."""
        act, hidden = ACTIVATIONS[self.activation], self.hidden
        second, last = nn.Linear(hidden, self._given), nn.Linear(hidden, math.prod(shape))
        first = LatentLinear(latents, self._given)
        return nn.Sequential(first, act(), second, act(), last, nn.Unflatten(1, shape))

    @property
    def _given(self) -> int:
        """What an activation of width ``hidden`` is given."""
        return 2 * self.hidden if self.activation == "glu" else self.hidden


NETS: dict[str, Callable[[Any], Nets]] = {
    "conv": lambda config: ConvNets(config.activation, config.depth, config.width),
    "mlp": lambda config: DenseNets(config.activation, config.hidden),
}
"""The kinds of nets, by what ``net`` of a model's config says: each from that config."""


def make_nets(config: Any) -> Nets:
    """The nets that a model's config asks for; raises UserError where a file's have no encoder and decoder."""
    if not is_word(config.net):
        return NETS[config.net](config)
    named = find(config.net)
    nets = named() if isinstance(named, type) else named
    if missing := [part for part in ("encoder", "decoder") if not callable(getattr(nets, part, None))]:
        raise UserError(
            f"net={config.net!r} has no {' and no '.join(missing)}; define encoder(shape, outputs) and "
            "decoder(latents, shape), each of which returns a module"
        )
    return nets


def automatic_depth(height: int, width: int) -> int:
    """The fewest halvings that leave at most 8 pixels on the longer side; from 2 to what the shorter side allows."""
    wanted = math.ceil(math.log2(max(height, width) / HALVED_TO))
    return max(2, min(wanted, _most_halvings(min(height, width))))


def _most_halvings(side: int) -> int:
    """How often a side, padded where need be, can be halved to no fewer than 2 pixels."""
    return (side - 1).bit_length() - 1


def refuse_small(shape: Shape, remedy: str) -> None:
    """Raise UserError for images with a side below 8 pixels."""
    _, height, width = shape
    if min(height, width) < LEAST_SIDE:
        raise UserError(
            f"images are {height} by {width}, and convolutions need sides of at least {LEAST_SIDE}: {remedy}"
        )


def _channels_last(*layers: nn.Module) -> nn.Sequential:
    """The layers one after another, their convolutions in the order in which a CPU is up to twice as fast."""
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class LatentLinear(nn.Linear):
    """The dense layer at the latent end of a net, in the type of its weights also where other products are in bfloat16.

    It is a small part of the work; what it gives are a posterior's mean and log-variance, or what a sample becomes.
    """

    def forward(self, input: Tensor) -> Tensor:
        # A CPU keeps the program of every size of product in bfloat16 for good: a search over sizes would grow by it.
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class ToImage(nn.ConvTranspose2d):
    """A transposed convolution to the few channels of an image; on a CPU one matrix product whose parts are added up.

    Its stride divides its kernel. It computes what its base does but for rounding, forward four times as fast in
    float32. In bfloat16 its base is the faster one.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        # A process of several may be without images in a step.
        if input.device.type != "cpu" or input.dtype == torch.bfloat16 or not len(input):
            return super().forward(input, output_size)
        assert self.bias is not None
        batch, channels, height, width = input.shape
        (kernel, _), (stride, _), padding = self.kernel_size, self.stride, int(self.padding[0])
        weight, pixels = self.weight.flatten(1).T, input.permute(0, 2, 3, 1).reshape(-1, channels)
        if torch.is_grad_enabled():
            # Images in place of channels, of which a CPU takes all at once.
            parts = (pixels @ weight.T).view(batch, height * width, -1).transpose(1, 2).reshape(1, -1, height * width)
            size = ((height - 1) * stride - 2 * padding + kernel, (width - 1) * stride - 2 * padding + kernel)
            images = F.fold(parts, size, kernel, padding=padding, stride=stride).unflatten(1, (batch, -1)).squeeze(0)
            return images + self.bias[:, None, None]
        # Adding up whole planes is faster, but not its gradient.
        taps = kernel // stride
        planes = (weight @ pixels.T).view(-1, taps, stride, taps, stride, batch, height, width)
        sums = planes.new_zeros(len(planes), stride, stride, batch, height + taps - 1, width + taps - 1)
        for row in range(taps):
            for column in range(taps):
                sums[..., row : row + height, column : column + width] += planes[:, row, :, column]
        whole = sums.permute(3, 0, 4, 1, 5, 2).flatten(4).flatten(2, 3)
        inside = slice(padding, -padding or None)
        return whole[..., inside, inside] + self.bias[:, None, None]


class Crop(nn.Module):
    """Of images (B, C, H', W') the ``height`` rows from ``top`` on and the ``width`` columns from ``left`` on."""

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        super().__init__()
        self.top, self.left, self.height, self.width = top, left, height, width

    def forward(self, input: Tensor) -> Tensor:
        return input[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Dropout(nn.Dropout):
    """Dropout of images (B, features) whose mask is drawn as ``draw`` says."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return input
        device, dtype = input.device, input.dtype

        def mask(shape: tuple[int, ...]) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype).bernoulli_(1 - self.p)

        kept = draw(mask, tuple(input.shape), 0, input)
        return input * (kept / (1 - self.p))


def lenet(shape: Shape, classes: int) -> nn.Sequential:
    """Images (B, C, H, W) to logits (B, classes): LeNet's layout (LeCun et al. 1998) with ReLU and max pooling.

    Pooling leaves out the last row or column of an odd side. Raises UserError for a side below 8.
    """
    refuse_small(shape, "--image-size resizes pictures, and arrays can be padded")
    height, width = (side // 2 // 2 for side in shape[1:])
    return _channels_last(
        nn.Conv2d(shape[0], 16, 5, padding=2),
        relu(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        relu(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Dropout(0.25),
        nn.Linear(32 * height * width, 128),
        relu(),
        Dropout(0.25),
        nn.Linear(128, classes),
    )
