"""Calls in processes of their own: results in order, and what a failure, a signal or a kill does to the others."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from elbolab.support.errors import UserError
from elbolab.support.processes import call_beside_each_other

LONG = 300


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def alive(pid: int) -> bool:
    # One that has ended may wait for its parent to ask how.
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def rest() -> None:
    # A signal that comes just before a sleep is heeded after it.
    for _ in range(10 * LONG):
        time.sleep(0.1)


def test_results_are_in_order_and_each_process_has_its_share_of_the_threads():
    powers = [partial(pow, 2, n) for n in range(5)]
    found = call_beside_each_other([*powers, *[torch.get_num_threads] * 3, *[os.getpid] * 3])
    assert found[:5] == [1, 2, 4, 8, 16]
    assert found[5:8] == [1, 1, 1]
    assert os.getpid() not in found[8:]


def test_with_one_thread_calls_are_in_this_process():
    torch.set_num_threads(1)
    assert call_beside_each_other([os.getpid] * 2) == [os.getpid()] * 2


def test_a_failure_interrupts_the_others_and_begins_no_more(tmp_path: Path):
    began = time.monotonic()
    later = [partial(os.mkdir, tmp_path / str(number)) for number in range(4)]
    with pytest.raises(ValueError, match="invalid literal"):
        call_beside_each_other([rest, partial(int, "no number"), *later])
    assert time.monotonic() - began < LONG / 2
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_the_users_mistake_in_one_line():
    with pytest.raises(UserError, match="a process was killed"):
        call_beside_each_other([rest, partial(signal.raise_signal, signal.SIGKILL)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_began_them(number: signal.Signals, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import faulthandler, os, signal, sys, time
import torch
from elbolab.support.processes import call_beside_each_other

def work(place):
    open(place, "w").write(str(os.getpid()))
    # A signal that comes just before a sleep is heeded after it.
    for _ in range(10 * {LONG}):
        time.sleep(0.1)

faulthandler.dump_traceback_later(50)
if __name__ == "__main__":
    from functools import partial
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    torch.set_num_threads(2)
    call_beside_each_other([partial(work, "0"), partial(work, "1")])
""")

    def heed() -> None:
        # A shell starts its background jobs with Ctrl-C ignored, and so would every process under them.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen([sys.executable, script], cwd=tmp_path, preexec_fn=heed)
    places = [tmp_path / "0", tmp_path / "1"]
    until = time.monotonic() + 120
    while not all(place.exists() and place.read_text() for place in places) and time.monotonic() < until:
        time.sleep(0.1)
    pids = [int(place.read_text()) for place in places]
    assert all(map(alive, pids))
    process.send_signal(number)
    process.wait(timeout=60)
    until = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, pids))
