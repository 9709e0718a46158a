"""Sending a journal in the background, tried again until all is sent, while the training goes on."""

import sys
import threading
import time
from collections.abc import Callable

from mlflow.exceptions import MlflowException

from elbolab.support.errors import UserError, reason
from elbolab.tracking.journal import Journal
from elbolab.tracking.mlflow_writer import MlflowWriter, WaitingError

FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
# How many times its patience a wait lasts at most, though ever more is sent.
MOST_PATIENCE = 10


class Uploader:
    """The thread that sends one journal; ``problem`` is the error of its last try, None where there was none."""

    def __init__(self, journal: Journal, writer: MlflowWriter) -> None:
        self.problem: Exception | None = None
        self._journal = journal
        self._writer = writer
        self._stopped = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, patience: float, enough: Callable[[], bool]) -> None:
        """Wait until it is ``enough``, or ``patience`` seconds go by without anything being sent, or ten times that."""
        with self._journal.changed:
            left, began = self._writer.left(), time.monotonic()
            until, last = began + patience, began + MOST_PATIENCE * patience
            while not enough() and time.monotonic() < until:
                self._journal.changed.wait(until - time.monotonic())
                if self._writer.left() < left:
                    left, until = self._writer.left(), min(time.monotonic() + patience, last)

    def stop(self) -> None:
        """Begin nothing more; a request that is under way is not waited for, and changes nothing in the journal."""
        with self._journal.changed:
            self._stopped = True
            self._journal.changed.notify_all()
        self._thread.join(timeout=1)

    def _work(self) -> None:
        delay, said = FIRST_DELAY, False
        while not self._stopped:
            problem = None
            try:
                self._writer.send(lambda: self._stopped)
            except Exception as error:
                problem = error
            # A run that the server refuses raises where it was begun, and one above is about to be made.
            silent = isinstance(problem, WaitingError) or (refused(problem) and not self._writer.is_there)
            if problem and not said and not silent:
                self._say(f"{reason(problem)}; what is logged waits in {self._journal.folder}")
                said = True
            elif said and not problem:
                self._say("the tracking server has all of it now")
                said = False
            with self._journal.changed:
                self.problem = problem
                self._journal.changed.notify_all()
                if problem:
                    self._journal.changed.wait_for(lambda: self._stopped, delay)
                    delay = min(2 * delay, LONGEST_DELAY)
                else:
                    self._journal.changed.wait_for(lambda: self._stopped or self._writer.left() > 0)
                    delay = FIRST_DELAY

    def _say(self, line: str) -> None:
        if not self._stopped:
            print(f"elbolab: {line}", file=sys.stderr)


def refused(error: Exception | None) -> bool:
    """Whether a server has refused a request for good; otherwise to try again may help."""
    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() not in (408, 429)
    return isinstance(error, UserError)
