"""Trainings beside each other in one process, in turns; on a GPU the steps of equal models are computed as one.

Each is an ordinary call of ``train`` on a stack of its own, a greenlet, which its backend leaves at the end of a turn.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from elbolab.models.objectives import Terms
from elbolab.support.errors import UserError
from elbolab.support.random_streams import Stream, of_streams
from elbolab.support.signals import postponed
from elbolab.training.backend import Backend, Objective, Step
from elbolab.training.compiled_steps import CompiledSteps

Result = TypeVar("Result")

# Each turn finds the weights of other trainings in a CPU's caches: in turns of one step a population of four vaes took
# up to 1.2 times as long as one after another.
STEPS_AT_A_TURN = 50

# Fields of a config that no step's forward pass reads.
BESIDE_THE_FORWARD = {"seed", "start", "epochs", "lr", "adam_eps", "beta", "beta_warmup"}
BESIDE_THE_FORWARD |= {"schedule", "patience", "patience_steps", "min_improvement", "clip"}


class _Turns(CompiledSteps):
    """The backend of one of several trainings: after some steps, or before each that is taken with others', it waits.

    The greenlet of the turns then gets the step to take, or None.
    """

    def __init__(self, turns: greenlet, as_one: bool | None) -> None:
        self._turns = turns
        self._as_one = as_one
        self._taken = 0

    def step(self, step: Step) -> None:
        if self._as_one or (self._as_one is None and step.batch.x.is_cuda):
            self._turns.switch(step)
            return
        step.take()
        self._taken += 1
        if self._taken % STEPS_AT_A_TURN == 0:
            self._turns.switch(None)


def take_turns(
    trainings: Sequence[Callable[[Backend], Result]], as_one: bool | None = None
) -> Generator[tuple[int, Result | Exception], None, None]:
    """Take some steps of each training in turn, each with random numbers of its own, so that each ends as if alone.

    Each is called with the backend to train on. Yields the place of every one that ends with what it returned or why it
    failed, while the others go on; all are ended, by GreenletExit, where this ends early. Ctrl-C and SIGTERM wait for
    a training to heed them. ``as_one`` says whether the steps of equal models are computed as one, by default where
    they are on a GPU: what their launches cost is then paid once, and a turn is one step. A CPU computes grouped
    convolutions slowly and takes up to twice as long.
    """
    streams = [Stream() for _ in trainings]
    # A greenlet begins without the context variables of who makes it.
    calls = [partial(_outcome, training, _Turns(getcurrent(), as_one)) for training in trainings]
    running = {place: greenlet(partial(copy_context().run, call)) for place, call in enumerate(calls)}
    with postponed():
        try:
            while running:
                steps: dict[int, Step] = {}
                for place, training in list(running.items()):
                    with streams[place].followed():
                        given = training.switch()
                    if training.dead:
                        del running[place]
                        yield place, given
                    elif given is not None:
                        steps[place] = given
                for places in _groups(steps):
                    failures = _take([steps[place] for place in places], [streams[place] for place in places])
                    for place, error in zip(places, failures, strict=True):
                        if error is not None:
                            yield place, running.pop(place).throw(error)
        finally:
            for training in running.values():
                training.throw()


def _outcome(training: Callable[[Backend], Result], backend: Backend) -> Result | Exception:
    try:
        return training(backend)
    except Exception as error:
        return error


def _groups(steps: dict[int, Step]) -> Iterator[list[int]]:
    """The places of the steps that are taken as one."""
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for place, step in steps.items():
        groups[_kind(step)].append(place)
    yield from groups.values()


def _kind(step: Step) -> Any:
    """Equal for steps whose forward passes differ in weights, images and random numbers alone."""
    if not isinstance(step.objective, Objective) or not (model := step.objective.model).stacks:
        return id(step)
    config = model.config.model_dump_json(exclude=BESIDE_THE_FORWARD)
    return type(model), config, model.spec, model.stage, len(step.batch)


def _take(steps: list[Step], streams: list[Stream]) -> list[Exception | None]:
    """Take steps of one kind; gives what went wrong in each."""
    try:
        if len(steps) > 1:
            return _take_as_one(steps, streams)
        with streams[0].followed():
            steps[0].take()
        return [None]
    except Exception as error:
        # Such as a lack of memory, of which all have their part.
        return [error] * len(steps)


def _take_as_one(steps: list[Step], streams: list[Stream]) -> list[Exception | None]:
    first = steps[0]
    weights, buffers = stack_module_state([step.objective for step in steps])

    def forward(state: Any, x: Tensor, y: Tensor, index: Tensor, kl_weight: Tensor) -> Any:
        batch = replace(first.batch, x=x, y=y, index=index)
        terms, loss = functional_call(first.objective, state, (batch, kl_weight))
        return (terms.log_px_z, terms.log_pz, terms.log_qz, terms.kl), dict(terms.also), loss

    x, y, index = (torch.stack([getattr(step.batch, name) for step in steps]) for name in ("x", "y", "index"))
    kl_weights = x.new_tensor([step.kl_weight for step in steps])
    with of_streams(streams):
        terms, also, losses = vmap(forward)((weights, buffers), x, y, index, kl_weights)
    losses.sum().backward()
    failures: list[Exception | None] = [None] * len(steps)
    for place, step in enumerate(steps):
        its_also = {key: value[place] for key, value in also.items()}
        step.terms = Terms(*(value[place] for value in terms), also=its_also)
        step.loss = losses[place]
        try:
            step.refuse_no_number()
        except UserError as error:
            failures[place] = error
            continue
        for name, weight in step.objective.named_parameters():
            gradient = weights[name].grad[place]
            # Adam's fused step takes it that a gradient lies in memory as its parameter does.
            same = gradient.stride() == weight.stride()
            weight.grad = gradient if same else torch.empty_like(weight).copy_(gradient)
        step.move()
    return failures
