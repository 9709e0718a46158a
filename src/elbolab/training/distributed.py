"""The processes that torchrun starts for one training: rank, barrier, reduce, shard; never training.

A batch is the batch of all of them. Each process draws the random numbers of the whole batch and keeps those of its own
images, so that N processes compute what one would. Without torchrun there is one process and all of this does nothing.
"""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from elbolab.data.splits import Batch
from elbolab.support import random_streams
from elbolab.support.errors import UserError

FAILURE = "elbolab/failure"
POLL_SECONDS = 0.5

_gpu: int | None = None
_store: Store


def rank() -> int:
    """The number of this process, from 0; process 0 is the one that tracks and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


# Beginning and ending


@contextmanager
def group(device: str) -> Iterator[None]:
    """Join the processes of torchrun, by gloo on the CPU and nccl on "cuda", from here on the GPU of LOCAL_RANK.

    Raises UserError where a machine has fewer GPUs than processes.
    """
    global _gpu, _store
    if not dist.is_torchelastic_launched():
        yield
        return
    if device == "cuda":
        if (wanted := int(os.environ["LOCAL_WORLD_SIZE"])) > (gpus := torch.cuda.device_count()):
            raise UserError(f"nproc-per-node={wanted} must be at most {gpus}, the GPUs of this machine; start fewer")
        _gpu = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(_gpu)
    store, number, count = next(rendezvous("env://"))
    # The group's own connection may be held by a collective that waits for a peer.
    _store = store.clone()
    try:
        _interruptible(lambda: dist.init_process_group(store=store, rank=number, world_size=count))
        yield
    except BaseException as error:
        _publish(error)
        # A thread blocked in a collective would hold up the interpreter's end for as long as a collective may last.
        codes = {UserError: 2, KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}
        atexit.register(os._exit, codes.get(type(error), 1))
        raise
    dist.destroy_process_group()


def together(work: Callable[[], object]) -> None:
    """Do ``work``, in which processes wait for each other; raises UserError with the reason of another that failed."""
    if not dist.is_initialized():
        work()
        return
    try:
        _interruptible(work)
    except BaseException as error:
        # torchrun answers the end of one process by SIGTERM to the others, which must not cut off their last words.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _publish(error)
        if not isinstance(error, UserError) and (reason := _failure_elsewhere()) is not None:
            raise UserError(reason) from error
        raise


def _interruptible(work: Callable[[], object]) -> None:
    """Do ``work`` in a thread of its own: the main one could hear no signal while blocked in a collective."""
    done: Future[object] = Future()

    def call() -> None:
        try:
            # A thread starts on the first GPU.
            if _gpu is not None:
                torch.cuda.set_device(_gpu)
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=call, daemon=True).start()
    while not wait([done], POLL_SECONDS).done:
        if (reason := _failure_elsewhere()) is not None:
            raise UserError(reason)
    done.result()


def _publish(error: BaseException) -> None:
    """Tell the others why this process fails, unless another failed before; who was told to end has not failed."""
    if isinstance(error, Exception):
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with suppress(dist.DistError):
            _store.compare_set(FAILURE, "", f"{os.environ['RANK']}:{reason}")


def _failure_elsewhere() -> str | None:
    """Why another process failed first, None where none has."""
    with suppress(dist.DistError):
        if _store.check([FAILURE]):
            number, reason = _store.get(FAILURE).decode().split(":", 1)
            return None if number == os.environ["RANK"] else f"process {number}: {reason}"
    return None


@contextmanager
def one_first() -> Iterator[None]:
    """One process of each machine goes first and the others follow, for files that may have to be downloaded."""
    later = dist.is_initialized() and os.environ["LOCAL_RANK"] != "0"
    if later:
        together(lambda: total(torch.zeros(())))
    yield
    if not later:
        together(lambda: total(torch.zeros(())))


# Sharing images, rows, random numbers and gradients


def owners(place: Tensor, count: int) -> Tensor:
    """The process that owns each of these places among ``count``: equal runs of them, the last shorter or empty."""
    return place // -(-count // processes())


def owned(count: int) -> slice:
    """The places among ``count`` that this process owns."""
    size = -(-count // processes())
    return slice(min(rank() * size, count), min((rank() + 1) * size, count))


@contextmanager
def share(batch: Batch, owners: Callable[[Batch], Tensor]) -> Iterator[Batch]:
    """This process's images of a batch, maybe none; while it lasts, random numbers and gradients are the batch's."""
    if not dist.is_initialized():
        yield batch
        return
    rows = (owners(batch) == rank()).nonzero()[:, 0]
    with random_streams.of_share(rows, len(batch)):
        yield batch[rows]


def parallel(module: nn.Module, own: list[str]) -> nn.Module:
    """``module``, its gradients averaged over the batch, but for the parameters ``own`` that no two processes share.

    Every other parameter must get a gradient in each backward pass.
    """
    if not dist.is_initialized() or not any(value.requires_grad for value in module.parameters()):
        return module
    # Buffers are equal everywhere and would be sent at each step.
    ignored = [*own, *(name for name, _ in module.named_buffers())]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    wrapped = DistributedDataParallel(module)
    wrapped.register_comm_hook(None, _batch_mean)
    return wrapped


def _batch_mean(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore[reportPrivateImportUsage]
    """The gradient of the mean over the batch, from those of the means over its unequal shares."""
    share = random_streams.share()
    assert share is not None
    rows, count = share
    sent = dist.all_reduce(bucket.buffer().mul_(len(rows) / count), async_op=True)
    assert sent is not None
    return sent.get_future().then(lambda sums: sums.value()[0])


# Putting together


def total(value: Tensor) -> Tensor:
    """The sum of ``value`` over the processes, the same on each."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def assemble(values: Tensor, owners: Tensor) -> Tensor:
    """The values (N, ...) of all places, of which each process has its own; ``owners`` (N,). Process 0 gets them."""
    if not dist.is_initialized():
        return values
    # Through the CPU, so that a table need not fit on any one GPU.
    values, owners = values.detach().cpu(), owners.cpu()
    if rank():
        dist.send(values, 0)
        return values.new_zeros(()).expand(len(owners), *values.shape[1:])
    whole = values.new_empty(len(owners), *values.shape[1:])
    whole[owners == 0] = values
    for number in range(1, processes()):
        theirs = owners == number
        part = values.new_empty(int(theirs.sum()), *values.shape[1:])
        dist.recv(part, number)
        whole[theirs] = part
    return whole
