"""What the docs tell a reader to add, added as they tell it to a copy of the package, and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
TINY = ["--train-size", "40", "--val-size", "10", "--test-size", "10"]


def code(heading: str) -> str:
    found = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def insert(file: Path, name: str, line: str, above: str = "") -> None:
    """Put ``line`` into the mapping ``name`` of a file, and ``above`` before the mapping."""
    text = file.read_text()
    start = re.search(rf"^{name}\b.* = .*[{{(]\n", text, re.MULTILINE)
    assert start is not None
    file.write_text(f"{text[: start.start()]}{above}\n\n{start[0]}    {line},\n{text[start.end() :]}")


@pytest.fixture
def copy(store: Path) -> Path:
    shutil.copytree(REPOSITORY / "src" / "elbolab", store / "copy" / "elbolab")
    return store / "copy" / "elbolab"


def elbolab(copy: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "elbolab", *arguments],
        cwd=copy.parent.parent,
        env={**os.environ, "PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.scale
def test_a_model_a_dataset_and_an_evaluator_are_added_as_the_page_says(copy: Path):
    (copy / "models" / "linear_vae.py").write_text(code("A model"))
    line = 'linear_vae="LinearVAE"'
    assert line in PAGE
    insert(copy / "models" / "__init__.py", "MODELS", line)
    assert '"digits8": _digits8' in PAGE
    insert(copy / "datasets.py", "DATASETS", '"digits8": _digits8', code("A dataset"))
    (copy / "evaluators" / "posterior_std.py").write_text(code("An evaluator"))
    line = '"posterior_std": posterior_std'
    assert line in PAGE
    above = "from elbolab.evaluators.posterior_std import posterior_std"
    insert(copy / "evaluators" / "__init__.py", "EVALUATORS", line, above)

    run = elbolab(copy, "linear_vae", "--dataset", "digits8", "--bias", "false", "--epochs", "1", *TINY)
    metrics = elbolab(copy, "evaluate", run, "--samples", "10", "--images", "10")
    assert re.search(r"^test/posterior_std \d+\.\d+$", metrics, re.MULTILINE)
