"""Gradients of a function of many vectors at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def value_and_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The values of a function of each vector, (..., D) to (...), and its gradients (..., D), both without a graph."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        value = function(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient
