"""The settings that torch keeps for a whole process: those that every computation here counts on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_callers: tuple[torch.dtype, torch.device] = (torch.float32, torch.device("cpu"))


@contextmanager
def default_settings() -> Iterator[None]:
    """Float32 and the CPU by default, and gradients, as where torch has just been imported; then the caller's again.

    Type and device are those of all threads: the caller's come back with the end of the last that is within.
    """
    global _inside, _callers
    with _lock:
        if not _inside:
            _callers = torch.get_default_dtype(), torch.get_default_device()
            _set(torch.float32, torch.device("cpu"))
        _inside += 1
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(*_callers)


def _set(dtype: torch.dtype, device: torch.device) -> None:
    torch.set_default_dtype(dtype)
    # A default device that is set slows every call, even where it is the one that would be taken.
    if device != torch.get_default_device():
        torch.set_default_device(None if device.type == "cpu" else device)
