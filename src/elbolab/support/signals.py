"""Ctrl-C and SIGTERM while something is half done: they wait for the next moment that can be gone on from."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class Interruption:
    """Whether a signal came, and what it does once it is heeded."""

    def __init__(self) -> None:
        self._waiting: Callable[[], Any] | None = None
        self._is_at_once = False

    def __bool__(self) -> bool:
        return self._waiting is not None

    def heed(self) -> None:
        """Do now what the signal would have done, if one came."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While it lasts a signal is heeded when it comes, as nothing is half done."""
        self.heed()
        self._is_at_once = True
        try:
            yield
        finally:
            self._is_at_once = False
        # Python drops what is raised while it frees an object.
        self.heed()

    def _behind(self, usual: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            # Who signals twice does not want to wait.
            is_now = self._waiting is not None or self._is_at_once
            self._waiting = partial(usual, number, frame)
            if is_now:
                usual(number, frame)
                self._waiting = None

        return handle


_outermost: Interruption | None = None


@contextmanager
def postponed() -> Iterator[Interruption]:
    """While it lasts Ctrl-C and SIGTERM wait for ``heed``; only the main thread hears signals at all.

    Those within another have its Interruption, and leave to it what came after their last moment.
    """
    global _outermost
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    if _outermost is not None:
        yield _outermost
        return
    _outermost = interruption = Interruption()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {number: handler for number, handler in usual.items() if callable(handler)}
    for number, handler in own.items():
        signal.signal(number, interruption._behind(handler))
    try:
        yield interruption
    finally:
        _outermost = None
        for number, handler in own.items():
            signal.signal(number, handler)
    # One that came after the last moment.
    interruption.heed()
