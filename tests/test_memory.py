"""What becomes of the memory that a computation has freed."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

import torch

from elbolab.memory import tune_memory

if "tuned" in sys.argv:
    tune_memory()


def compute():
    for numbers in (1_000_000, 2_000_000, 4_000_000):
        x = torch.ones(numbers)
        y = x + 1
        z = y * 2
        del x


for _ in range(4):
    compute()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    compute()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_freed_memory_is_used_again_instead_of_asked_for_anew():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True).stdout)
        for how in ("tuned", "as it comes")
    }
    assert pages["tuned"] < pages["as it comes"] / 4
