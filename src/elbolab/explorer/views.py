"""What the page has of a run: its decoder as layers and weights, its posterior means, their leading directions."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elbolab.evaluation.base import Evaluation
from elbolab.models.latent import LatentModel
from elbolab.models.likelihoods.base import MeanLayer
from elbolab.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from elbolab.models.likelihoods.discretised_logistic import LEAST_LOG_SCALE, DiscretisedLogistic
from elbolab.models.networks import Crop
from elbolab.support.errors import UserError

DIRECTIONS = 8
# What the page draws from the prior is one of these, since it knows no family of priors.
DRAWS = 500


def view(model: LatentModel, evaluation: Evaluation) -> dict[str, Any]:
    """The posterior means of the evaluation's test images and what decodes them, as JSON holds it.

    `weights`, `means` (N, D), `draws` (500, D) from the prior, `centre` (D,) and `directions` (K, D) are float32 in
    base64. Directions are orthonormal, by falling standard deviation of the means along them; `shares` are their parts
    of the variance. Raises UserError where the page could not decode as the model does.
    """
    posteriors = evaluation.inferred("test")
    means = torch.cat([q.mean for q in posteriors])
    draws = model.prior.sample((DRAWS,), evaluation.generator("prior draws"))
    if (decoder := model.layers) is None:
        raise _unknown(model)
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
        "draws": packed([draws]),
        "centre": packed([centre]),
        "directions": packed([directions]),
        "deviations": deviations.tolist(),
        "shares": shares.tolist(),
    }


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
            case nn.ReLU() | nn.Tanh() | nn.Sigmoid() | nn.GLU() | nn.ELU(alpha=1.0):
                layer |= {"kind": type(module).__name__.lower()}
            case Crop(top=top, left=left):
                layer |= {"kind": "crop", "top": top, "left": left}
            case MeanLayer(likelihood=ContinuousBernoulli()):
                layer |= {"kind": "continuous_bernoulli"}
            case MeanLayer(likelihood=DiscretisedLogistic()):
                layer |= {"kind": "discretised_logistic", "least": LEAST_LOG_SCALE}
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
        "Tanh, ELU and GLU, as the model's `layers`, under the likelihoods of LatentConfig"
    )
