"""The backend of the processes that torchrun starts for one training: begin and end together, share, reduce, gather.

A batch is the batch of all of them. Each process draws the random numbers of the whole batch and keeps those of its own
images, so that N processes compute what one would.
"""
# Torch documents Store and GradBucket, but does not list them.
# pyright: reportPrivateImportUsage=false

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
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from elbolab.data.batches import Batch, Data
from elbolab.models.base import Model
from elbolab.support import random_streams
from elbolab.support.errors import UserError
from elbolab.training.backend import Backend

# Where the processes' common store says which of them failed first, and why.
FIRST_FAILURE = "elbolab/failure"
POLL_SECONDS = 0.5


@contextmanager
def group(device: str) -> Iterator["Processes | None"]:
    """Join the processes of torchrun, by gloo on the CPU and nccl on "cuda", from here on the GPU of LOCAL_RANK.

    Gives None without torchrun. Raises UserError where a machine has fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched():
        yield None
        return
    gpu = None
    if device == "cuda":
        if (wanted := int(os.environ["LOCAL_WORLD_SIZE"])) > (gpus := torch.cuda.device_count()):
            raise UserError(f"nproc-per-node={wanted} must be at most {gpus}, the GPUs of this machine; start fewer")
        gpu = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(gpu)
    store, rank, count = next(rendezvous("env://"))
    # The group's own connection may be held by a collective that waits for a peer.
    backend = Processes(rank, count, store.clone(), gpu)
    try:
        backend.interruptible(lambda: dist.init_process_group(store=store, rank=rank, world_size=count))
        yield backend
    except BaseException as error:
        backend.publish(error)
        # A thread blocked in a collective would hold up the interpreter's end for as long as a collective may last.
        codes = {UserError: 2, KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}
        atexit.register(os._exit, codes.get(type(error), 1))
        raise
    dist.destroy_process_group()


class Processes(Backend):
    """One of ``processes`` that compute what one would: each has some images of a batch, and some rows of a table."""

    def __init__(self, rank: int, processes: int, store: dist.Store, gpu: int | None = None) -> None:
        self.rank = rank
        self.processes = processes
        self._store = store
        self._gpu = gpu
        # The part of the present batch that this process has.
        self._part = 1.0

    def owned(self, count: int) -> slice:
        """The places among ``count`` that this process owns: equal runs of them, the last shorter or empty."""
        size = -(-count // self.processes)
        return slice(min(self.rank * size, count), min((self.rank + 1) * size, count))

    def owners(self, places: Tensor, count: int) -> Tensor:
        """The process that owns each of these places (N,) among ``count``, (N,)."""
        return places // -(-count // self.processes)

    def begin(self, model: Model, data: Data) -> nn.Module:
        """The objective, its gradients averaged over the batch; every parameter must get one in each backward pass.

        But for the tables of ``Model.sharded``, of which no two processes have the same rows.
        """
        model.keep_rows(self.owned)
        objective = super().begin(model, data)
        # Torch leaves alone what wants no gradient when it begins.
        tables = [model.get_parameter(name).requires_grad_(False) for name in model.sharded]
        common = [value for value in model.parameters() if value.requires_grad]
        for value in common:
            dist.broadcast(value.detach(), 0)
        if common:
            # It would send the tables at its beginning, and buffers, which are equal everywhere, at each step.
            objective = DistributedDataParallel(objective, forward_sync_buffers=False, init_sync=False)
            objective.register_comm_hook(None, self._batch_mean)
        for table in tables:
            table.requires_grad_()
        return objective

    def _batch_mean(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """The gradient of the mean over the batch, from those of the means over its unequal shares."""
        sent = dist.all_reduce(bucket.buffer().mul_(self._part), async_op=True)
        assert sent is not None
        return sent.get_future().then(lambda sums: sums.value()[0])

    @contextmanager
    def share(self, model: Model, batch: Batch) -> Iterator[Batch]:
        rows = (self.owners(*model.place(batch)) == self.rank).nonzero()[:, 0]
        self._part = len(rows) / len(batch)
        with random_streams.of_images(rows, len(batch)):
            yield batch[rows]

    def gather(self, values: Tensor, model: Model, batch: Batch) -> Tensor:
        return self._gather(values, self.owners(*model.place(batch)))

    def weights(self, model: Model) -> dict[str, Tensor]:
        weights = model.state_dict()
        for name, rows in model.sharded.items():
            weights[name] = self._gather(weights[name], self.owners(torch.arange(rows), rows))
        return weights

    def _gather(self, values: Tensor, owners: Tensor) -> Tensor:
        """The values (N, ...) of all places, of which each process has its own; ``owners`` (N,)."""
        # Through the CPU, so that a table need not fit on any one GPU.
        values, owners = values.detach().cpu(), owners.cpu()
        if self.rank:
            dist.send(values, 0)
            return values.new_zeros(()).expand(len(owners), *values.shape[1:])
        whole = values.new_empty(len(owners), *values.shape[1:])
        whole[owners == 0] = values
        for number in range(1, self.processes):
            theirs = owners == number
            part = values.new_empty(int(theirs.sum()), *values.shape[1:])
            dist.recv(part, number)
            whole[theirs] = part
        return whole

    def sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @contextmanager
    def one_first(self) -> Iterator[None]:
        later = os.environ["LOCAL_RANK"] != "0"
        if later:
            self._meet()
        yield
        if not later:
            self._meet()

    def _meet(self) -> None:
        self.run(lambda: self.sum(torch.zeros(())))

    # Ending together

    def run(self, work: Callable[[], object]) -> None:
        try:
            self.interruptible(work)
        except BaseException as error:
            # torchrun answers the end of one process by SIGTERM to the others, which must not cut off their last words.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.publish(error)
            if not isinstance(error, UserError) and (reason := self._failure_elsewhere()) is not None:
                raise UserError(reason) from error
            raise

    def interruptible(self, work: Callable[[], object]) -> None:
        """Do ``work`` in a thread of its own: the main one could hear no signal while blocked in a collective.

        Raises UserError where another process fails meanwhile.
        """
        done: Future[object] = Future()

        def call() -> None:
            try:
                # A thread starts on the first GPU.
                if self._gpu is not None:
                    torch.cuda.set_device(self._gpu)
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        Thread(target=call, daemon=True).start()
        while not wait([done], POLL_SECONDS).done:
            if (reason := self._failure_elsewhere()) is not None:
                raise UserError(reason)
        done.result()

    def publish(self, error: BaseException) -> None:
        """Tell the others why this process fails, unless another failed before; who was told to end has not failed."""
        if isinstance(error, Exception):
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with suppress(dist.DistError):
                self._store.compare_set(FIRST_FAILURE, "", f"{self.rank}:{reason}")

    def _failure_elsewhere(self) -> str | None:
        """Why another process failed first, None where none has."""
        with suppress(dist.DistError):
            if self._store.check([FIRST_FAILURE]):
                number, reason = self._store.get(FIRST_FAILURE).decode().split(":", 1)
                return None if number == str(self.rank) else f"process {number}: {reason}"
        return None
