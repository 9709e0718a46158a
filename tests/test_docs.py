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


def code(heading: str, place: int = 0) -> str:
    """One of the blocks of Python under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return re.findall(r"```python\n(.*?)```", found[1], re.DOTALL)[place]


def said(line: str) -> str:
    """A line that the page has its reader write."""
    assert f"`{line}`" in PAGE
    return line


def insert(file: Path, name: str, line: str, above: str = "") -> None:
    """Put ``line`` into the mapping ``name`` of a file, and ``above`` before the mapping."""
    text = file.read_text()
    mapping = re.search(rf"^{name}\b.* = .*[{{(]\n(?:    .*\n)*", text, re.MULTILINE)
    assert mapping is not None
    file.write_text(f"{text[: mapping.start()]}{above}\n\n{mapping[0]}    {line},\n{text[mapping.end() :]}")


@pytest.fixture
def copy(store: Path) -> Path:
    shutil.copytree(REPOSITORY / "src" / "elbolab", store / "copy" / "elbolab")
    return store / "copy" / "elbolab"


def python(copy: Path, module: str, *arguments: str) -> str:
    """What `python -m MODULE ARGUMENTS` prints, by the copy of the package."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=copy.parent.parent,
        env={**os.environ, "PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.scale
def test_what_the_page_adds_keeps_its_promises_and_is_trained_and_evaluated(copy: Path):
    (copy / "models" / "linear_vae.py").write_text(code("A model"))
    (copy / "models" / "priors" / "laplace.py").write_text(code("A prior"))
    insert(copy / "models" / "priors" / "__init__.py", "PRIORS", said('laplace="Laplace"'))
    insert(copy / "data" / "readers.py", "DATASETS", said('"digits8": _digits8'), code("A dataset"))
    (copy / "evaluation" / "posterior_std.py").write_text(code("An evaluator"))
    above = "from elbolab.evaluation.posterior_std import posterior_std"
    insert(copy / "evaluation" / "evaluators.py", "EVALUATORS", said('"posterior_std": posterior_std'), above)
    metrics = copy / "evaluation" / "metrics.py"
    metrics.write_text(metrics.read_text().replace("\nSE = ", f"\n{code('An evaluator', 1)}SE = ", 1))

    # A model of another package than this has no line in MODELS.
    (copy.parent.parent / "test_own.py").write_text(code("Test it"))
    tests = python(copy, "pytest", "-q", "-p", "no:cacheprovider", "test_own.py")
    assert "failed" not in tests
    assert " passed" in tests

    insert(copy / "models" / "__init__.py", "MODELS", said('linear_vae="LinearVAE"'))
    options = ["--dataset", "digits8", "--prior", "laplace", "--bias", "false", "--epochs", "1", *TINY]
    run = python(copy, "elbolab", "linear_vae", *options)
    printed = python(copy, "elbolab", "evaluate", run, "--samples", "10", "--images", "10", "--budget", "1")
    assert re.search(r"^test/posterior_std \d+\.\d+$", printed, re.MULTILINE)


def test_the_tests_and_files_that_the_pages_name_are_there():
    files = [file for folder in ("src/elbolab", "tests") for file in (REPOSITORY / folder).rglob("*.py")]
    paths = {str(file.relative_to(REPOSITORY)) for file in [*files, *REPOSITORY.glob("*/*.py")]}
    names = {name for file in files for name in re.findall(r"^ *def (test_\w+)", file.read_text(), re.MULTILINE)}
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/*.md")]
    words = {word for page in pages for word in re.findall(r"`([\w/]+(?:\.py)?)`", page.read_text())}
    gone = {word for word in words if word.endswith(".py") and not any(f"/{one}".endswith(f"/{word}") for one in paths)}
    gone |= {word for word in words if re.fullmatch(r"test_\w+", word)} - names - {"test_size"}
    # What a page has its reader write.
    written = {"models/linear_vae.py", "models/priors/laplace.py", "evaluation/posterior_std.py"}
    assert gone == {f"src/elbolab/{file}" for file in written}
