"""What the page has of a run: its decoder as layers and weights, its posterior means, their leading directions."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.evaluation.base import Evaluation
from elbolab.models.latent import LatentModel
from elbolab.models.likelihoods import ContinuousBernoulli
from elbolab.models.neural import DeepLatentModel
from elbolab.models.ppca import PPCA
from elbolab.support.errors import UserError

DIRECTIONS = 8


class _ContinuousBernoulliMean(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return ContinuousBernoulli().mean(logits)


def view(model: LatentModel, evaluation: Evaluation) -> dict[str, Any]:
    """The posterior means of the evaluation's test images and what decodes them, as JSON holds it.

    `weights`, `means` (N, D), `centre` (D,) and `directions` (K, D) are float32 in base64. Directions are orthonormal,
    by falling standard deviation of the means along them; `shares` are their parts of the variance. Raises UserError
    where the page could not decode as the model does.
    """
    posteriors = evaluation.inferred("test")
    means = torch.cat([q.mean for q in posteriors])
    decoder = expected_image(model)
    shown = torch.cat([model.reconstruct(q) for q in posteriors])
    with torch.no_grad():
        if not torch.allclose(decoder(means).clamp(0, 1).view_as(shown), shown, atol=1e-5):
            raise _unknown(model)
    centre, directions, deviations, shares = principal(means)
    return {
        "latent_dim": means.shape[1],
        "layers": layers(decoder, means[:1], model),
        "weights": packed([weight for module in decoder for weight in module.parameters()]),
        "means": packed([means]),
        "centre": packed([centre]),
        "directions": packed([directions]),
        "deviations": deviations.tolist(),
        "shares": shares.tolist(),
    }


def expected_image(model: LatentModel) -> nn.Sequential:
    """The modules from z (B, D) to the expected image, before pixels are cut to [0, 1]."""
    match model:
        case PPCA():
            linear = nn.Linear(model.config.latent_dim, len(model.mean))
            linear.weight, linear.bias = nn.Parameter(model.loadings), nn.Parameter(model.mean)
            return nn.Sequential(linear)
        case DeepLatentModel():
            # The other likelihoods expect the sigmoid of the net's activations.
            grey = isinstance(model.likelihood, ContinuousBernoulli)
            return nn.Sequential(*model.decoder, _ContinuousBernoulliMean() if grey else nn.Sigmoid())
        case _:
            raise _unknown(model)


def layers(decoder: nn.Sequential, z: Tensor, model: LatentModel) -> list[dict[str, Any]]:
    """Each module as decoder.js knows it: its kind, shapes and numbers of weights; without what only renames axes."""
    found: list[dict[str, Any]] = []
    for module in decoder:
        before, z = z, module(z)
        layer: dict[str, Any] = {"weights": [weight.numel() for weight in module.parameters()]}
        layer |= {"inputs": list(before.shape[1:]), "outputs": list(z.shape[1:])}
        match module:
            case nn.Linear():
                layer |= {"kind": "linear"}
            case nn.ConvTranspose2d(kernel_size=(kernel, _), stride=(stride, _), padding=(padding, _)):
                layer |= {"kind": "conv_transpose", "kernel": kernel, "stride": stride, "padding": padding}
            case nn.ReLU():
                layer |= {"kind": "relu"}
            case nn.Tanh():
                layer |= {"kind": "tanh"}
            case nn.ELU(alpha=1.0):
                layer |= {"kind": "elu"}
            case nn.Sigmoid():
                layer |= {"kind": "sigmoid"}
            case _ContinuousBernoulliMean():
                layer |= {"kind": "continuous_bernoulli"}
            case nn.Unflatten():
                continue
            case _:
                raise _unknown(model)
        found.append(layer)
    return found


def principal(means: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of vectors (N, D): their mean (D,), K leading directions (K, D), K standard deviations, K shares of variance.

    K is at most ``DIRECTIONS``, less where the vectors do not span as many.
    """
    x = means.double()
    centre = x.mean(0)
    _, scales, directions = torch.linalg.svd(x - centre, full_matrices=False)
    # A direction has a free sign: its largest entry is made positive, so that every machine agrees.
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    count = min(DIRECTIONS, int((scales > 1e-6 * scales[0]).sum()))
    deviations, shares = scales / len(x) ** 0.5, scales.square() / scales.square().sum()
    return centre, directions[:count], deviations[:count], shares[:count]


def packed(tensors: Sequence[Tensor]) -> str:
    """Numbers one after another as little-endian float32 in base64."""
    flat = torch.cat([tensor.detach().cpu().float().reshape(-1) for tensor in tensors])
    return base64.b64encode(flat.numpy().astype("<f4").tobytes()).decode()


def _unknown(model: LatentModel) -> UserError:
    return UserError(
        f"the explorer cannot decode as {type(model).__name__} does; it runs nets of Linear, ConvTranspose2d, ReLU, "
        "Tanh and ELU under the likelihoods of LatentConfig, and ppca"
    )
