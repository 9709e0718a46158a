"""What the docs tell a reader to add, added as they tell it, and run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
TINY = ["--train-size", "40", "--val-size", "10", "--test-size", "10"]


def code(heading: str, language: str = "python") -> str:
    """The first block of a language under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return re.findall(rf"```{language}\n(.*?)```", found[1], re.DOTALL)[0]


def said(line: str) -> str:
    """A line that the page has its reader write."""
    assert f"`{line}`" in PAGE
    return line


def insert(file: Path, name: str, line: str) -> None:
    """Put ``line`` into the mapping ``name`` of a file."""
    text = file.read_text()
    mapping = re.search(rf"^{name}\b.* = .*[{{(]\n(?:    .*\n)*", text, re.MULTILINE)
    assert mapping is not None
    file.write_text(f"{text[: mapping.start()]}{mapping[0]}    {line},\n{text[mapping.end() :]}")


def install(folder: Path) -> None:
    """The package that the page has its reader write, as pip leaves it in ``folder``."""
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "linear_vae.py").write_text(code("A model"))
    (package / "datasets.py").write_text(code("A dataset"))
    (package / "evaluators.py").write_text(code("An evaluator"))
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    groups = tomllib.loads(code("Entry points", language="toml"))["project"]["entry-points"]
    lines = [
        line for group, names in groups.items() for line in (f"[{group}]", *(f"{key}={names[key]}" for key in names))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


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
    working = copy.parent.parent
    (working / "linear_vae.py").write_text(code("A model"))
    (working / "nets.py").write_text(code("Nets"))
    (copy / "models" / "priors" / "laplace.py").write_text(code("A prior"))
    insert(copy / "models" / "priors" / "__init__.py", "PRIORS", said('laplace="Laplace"'))
    (copy / "models" / "likelihoods" / "laplacian.py").write_text(code("A likelihood"))
    insert(copy / "models" / "likelihoods" / "__init__.py", "LIKELIHOODS", said('laplacian="Laplacian"'))
    install(copy.parent)
    (working / "test_own.py").write_text(code("Test it"))
    tests = python(copy, "pytest", "-q", "-p", "no:cacheprovider", "test_own.py")
    assert "failed" not in tests
    assert " passed" in tests

    options = [
        "--dataset",
        "digits8",
        "--net",
        "nets.py:SiluNets",
        "--prior",
        "laplace",
        "--likelihood",
        "laplacian",
        "--rank",
        "3",
        "--epochs",
        "1",
    ]
    for model in (["train", "linear_vae.py:LinearVAE"], ["linear_vae"]):
        run = python(copy, "elbolab", *model, *options, *TINY)
        printed = python(
            copy, "elbolab", "evaluate", run, "--trust", "--samples", "10", "--images", "10", "--budget", "1"
        )
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
    laplacian = "src/elbolab/models/likelihoods/laplacian.py"
    package = {f"my_package/{file}" for file in ("datasets.py", "evaluators.py")}
    assert gone == {"linear_vae.py", "src/elbolab/models/priors/laplace.py", laplacian, *package}
