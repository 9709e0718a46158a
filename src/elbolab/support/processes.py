"""Calls beside each other, each in a process of this machine with its share of the cores."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from types import FrameType
from typing import Any, TypeVar

import torch

from elbolab.support import counters
from elbolab.support.errors import UserError
from elbolab.support.malloc import tune_memory

Result = TypeVar("Result")

_is_stopped = False


def call_beside_each_other(
    calls: Sequence[Callable[[], Result]], begin: Callable[[], None] | None = None
) -> list[Result]:
    """What each of ``calls`` returns, in their order; as many are called at once as this process has threads.

    Each has its share of the threads, and its process calls ``begin`` first; both are pickled. With one thread, and
    where there is a GPU, they are called one after another in this process. Where one fails, and on Ctrl-C and SIGTERM,
    the others get SIGTERM and are waited for. Raises what a call raised, and UserError where a process was killed.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(calls) == 1 or torch.cuda.is_available():
        return [call() for call in calls]
    at_once = min(threads, len(calls))
    context = get_context("spawn")
    places = context.Queue()
    for place in range(at_once):
        places.put(place)
    with ProcessPoolExecutor(at_once, context, _begin, (begin, threads // at_once, places)) as pool:
        futures = [pool.submit(_call, call) for call in calls]
        # The pool's thread minds the processes that it knew when it last woke, which need not have been all.
        pool.submit(int)
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            # The first that failed raises; the order of a set is not that of time.
            for future in futures:
                if future in done:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError("a process was killed, maybe for lack of memory; resume its run") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()


def _begin(begin: Callable[[], None] | None, threads: int, places: Any) -> None:
    # A terminal sends Ctrl-C to every process; the first of them passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    Thread(target=_stop_with_parent, daemon=True).start()
    counters.place = places.get()
    torch.set_num_threads(threads)
    tune_memory()
    if begin is not None:
        begin()


def _call(call: Callable[[], Result]) -> Result:
    global _is_stopped
    # More calls may wait for this process already.
    if _is_stopped:
        sys.exit()
    try:
        return call()
    except BaseException:
        _is_stopped = True
        raise
    finally:
        # Nobody reads what is sent back, nor sends a next call: the pool would wait for ever.
        if _is_stopped and not _parent().is_alive():
            os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    global _is_stopped
    _is_stopped = True
    sys.exit(128 + number)


def _stop_with_parent() -> None:
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parent() -> BaseProcess:
    parent = parent_process()
    assert parent is not None
    return parent
