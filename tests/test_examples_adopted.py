"""The example that adopts a model of pythae, run as its docstring says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from elbolab.tracking import mlflow_reader


def test_the_example_of_pythae_trains_adopts_and_evaluates(store: Path):
    pytest.importorskip("pythae", reason="pythae is not installed; pip install 'elbolab[pythae]'")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "adopted_pythae.py"],
        cwd=store,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    named, said = done.stdout.strip().splitlines()[-2:]
    run = mlflow_reader.get_run(named.removeprefix("run "))
    assert run.tags["adopted"].startswith("pythae ")
    figures = re.match(r"test log p\(x\) (\S+) ± .* a constant image has (\S+)$", said)
    assert figures is not None
    # Ten passes over the digits explain them far better than their mean does.
    assert float(figures[1]) > float(figures[2]) + 20
    assert run.metrics["test/log_px"] == pytest.approx(float(figures[1]), abs=0.01)
