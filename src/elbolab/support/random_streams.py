"""Whose random numbers a model draws: its own, those of some images of a batch, or of each of several models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Random = Callable[[tuple[int, ...]], Tensor]

_images: tuple[Tensor, int] | None = None
_streams: "Sequence[Stream]" = ()


def draw(random: Random, shape: tuple[int, ...], dim: int, beside: Tensor) -> Tensor:
    """Random numbers of this shape, to go with ``beside``, by ``random`` from torch's global generators.

    Within ``of_images`` those of the images, which ``dim`` counts, among the whole batch's. Where ``torch.vmap`` runs
    several models as one, those that each would draw alone.
    """
    if _streams:
        return _DrawPerModel.apply(beside, random, shape)
    if _images is None:
        return random(shape)
    rows, count = _images
    assert shape[dim] == len(rows), f"dimension {dim} of {shape} must count the {len(rows)} images"
    return random((*shape[:dim], count, *shape[dim + 1 :])).index_select(dim, rows)


@contextmanager
def of_images(rows: Tensor, count: int) -> Iterator[None]:
    """While it lasts, draws are those of the images ``rows`` (B,) of a batch of ``count``."""
    global _images
    _images = rows, count
    try:
        yield
    finally:
        _images = None


_turn = RLock()
# What initial weights are drawn by.
DRAWS = {"uniform_", "normal_", "bernoulli_", "exponential_", "kaiming_uniform_", "kaiming_normal_"}
DRAWS |= {"rand", "randn", "randint", "randperm", "bernoulli", "normal"}


@contextmanager
def own_stream() -> Iterator[None]:
    """While it lasts no other thread's training draws from torch's global generators; afterwards they are as before.

    Nets are initialised from these alone, which all threads share.
    """
    with _turn:
        before = _global_states()
        try:
            yield
        finally:
            _set_global_states(before)


class OwnGenerator(TorchFunctionMode):
    """While it lasts this thread draws on the CPU from a generator of its own: weights that are then replaced."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


class Stream:
    """Torch's global random numbers as one of several trainings in this process knows them."""

    def __init__(self) -> None:
        self._states = _global_states()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While it lasts, what is drawn is of this stream; afterwards the stream that was there goes on."""
        before = _global_states()
        _set_global_states(self._states)
        try:
            yield
        finally:
            self._states = _global_states()
            _set_global_states(before)


def _global_states() -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])


def _set_global_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


@contextmanager
def of_streams(streams: Sequence[Stream]) -> Iterator[None]:
    """While it lasts, each of the models that ``torch.vmap`` runs as one draws from its own of ``streams``."""
    global _streams
    _streams = streams
    try:
        yield
    finally:
        _streams = ()


class _DrawPerModel(torch.autograd.Function):
    """Draws that ``torch.vmap`` makes one by one for the models that it runs as one."""

    @staticmethod
    def forward(beside: Tensor, random: Random, shape: tuple[int, ...]) -> Tensor:  # pyright: ignore
        return random(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        _, random, shape = args
        drawn = []
        for stream in _streams:
            with stream.followed():
                drawn.append(random(shape))
        return torch.stack(drawn), 0
