"""What becomes of the memory that a computation has freed."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

import torch

from elbolab.support.malloc import tune_memory

if "tuned" in sys.argv:
    tune_memory()


def compute(millions):
    for numbers in (1, 2, 4):
        x = torch.ones(int(numbers * millions * 1e6))
        y = x + 1
        z = y * 2
        del x


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


pages = 0
# Where the system's own rule strikes is luck.
for millions in (0.5, 0.7, 0.9, 1.1, 1.3):
    for _ in range(4):
        compute(millions)
    before = faults()
    for _ in range(20):
        compute(millions)
    pages += faults() - before
print(pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_freed_memory_is_used_again_instead_of_asked_for_anew():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True).stdout)
        for how in ("tuned", "as it comes")
    }
    assert pages["tuned"] < pages["as it comes"] / 10
