"""Network bodies: images to features and latent vectors to images."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elbolab.support.errors import UserError
from elbolab.support.random_streams import draw

Shape = tuple[int, int, int]
# Nothing else reads what a layer gives; to keep it beside its positive part takes log p(x) a thirtieth longer.
relu = partial(nn.ReLU, inplace=True)
ACTIVATIONS = {"relu": relu, "tanh": nn.Tanh, "elu": nn.ELU}

CONV_REMEDY = "pad or crop them, or take net=mlp"


def _quarter(shape: Shape, remedy: str) -> tuple[int, int]:
    _, height, width = shape
    if height % 4 or width % 4 or min(height, width) < 8:
        raise UserError(
            f"images are {height} by {width}; the conv nets halve them twice and need sides that are multiples of 4, "
            f"at least 8: {remedy}"
        )
    return height // 4, width // 4


def make_encoder(net: str, shape: Shape, outputs: int, hidden: int, activation: str) -> nn.Sequential:
    """Images (B, C, H, W) to (B, outputs) by the net "conv" or "mlp".

    conv has two strided convolutions of 32 and 64 channels and a dense layer of 256; mlp, for images of any size, two
    dense layers that are ``hidden`` wide (Burda et al. 2016, section 5). Raises UserError for sides that conv cannot
    halve twice.
    """
    act = ACTIVATIONS[activation]
    if net == "mlp":
        first, second = nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, hidden)
        return nn.Sequential(nn.Flatten(), first, act(), second, act(), LatentLinear(hidden, outputs))
    height, width = _quarter(shape, CONV_REMEDY)
    return _channels_last(
        nn.Conv2d(shape[0], 32, 4, stride=2, padding=1),
        act(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(64 * height * width, 256),
        act(),
        LatentLinear(256, outputs),
    )


def make_decoder(net: str, inputs: int, shape: Shape, hidden: int, activation: str) -> nn.Sequential:
    """Latent vectors (B, inputs) to unbounded activations (B, C, H, W) by the mirror of ``make_encoder``'s net."""
    act = ACTIVATIONS[activation]
    if net == "mlp":
        second, last = nn.Linear(hidden, hidden), nn.Linear(hidden, math.prod(shape))
        first = LatentLinear(inputs, hidden)
        return nn.Sequential(first, act(), second, act(), last, nn.Unflatten(1, shape))
    height, width = _quarter(shape, CONV_REMEDY)
    return _channels_last(
        LatentLinear(inputs, 256),
        act(),
        nn.Linear(256, 64 * height * width),
        act(),
        nn.Unflatten(1, (64, height, width)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        act(),
        ToImage(32, shape[0], 4, stride=2, padding=1),
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
    """Images (B, C, H, W) to logits (B, classes): LeNet's layout (LeCun et al. 1998) with ReLU and max pooling."""
    height, width = _quarter(shape, "pad or crop them")
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
