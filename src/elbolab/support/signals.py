"""Ctrl-C and SIGTERM while something is half done: they wait for the next moment that can be gone on from."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class Interruption:
    """Whether a signal came, and what it does once it is heeded."""

    def __init__(self) -> None:
        self._waiting: Callable[[], Any] | None = None
        self._usual: dict[int, Handler] = {}
        self._holders = 0

    def __bool__(self) -> bool:
        return self._waiting is not None

    def heed(self) -> None:
        """Do now what the signal would have done, if one came."""
        if self._waiting is not None:
            self._waiting()

    def _hold(self) -> None:
        self._holders += 1
        if self._holders == 1:
            self._waiting = None
            usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._usual = {number: handler for number, handler in usual.items() if callable(handler)}
            for number, handler in self._usual.items():
                signal.signal(number, self._behind(handler))

    def _release(self) -> None:
        self._holders -= 1
        if not self._holders:
            for number, handler in self._usual.items():
                signal.signal(number, handler)

    def _behind(self, usual: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            # Who signals twice does not want to wait.
            if self._waiting is not None:
                usual(number, frame)
            self._waiting = lambda: usual(number, frame)

        return handle


_of_main_thread = Interruption()


@contextmanager
def postponed() -> Iterator[Interruption]:
    """While it lasts Ctrl-C and SIGTERM wait for ``heed``; only the main thread hears signals at all.

    Those that last at the same time, within each other or overlapping, have one Interruption; the last to end heeds it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    interruption = _of_main_thread
    interruption._hold()
    try:
        yield interruption
    finally:
        interruption._release()
    # One that came after the last moment.
    if not interruption._holders:
        interruption.heed()
