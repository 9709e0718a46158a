"""The notebooks run from top to bottom, are kept without outputs, and define nothing: that is the package's to do."""

import ast
import time
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

MOST_SECONDS = 120
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_a_notebook_is_kept_without_outputs_and_defines_nothing(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
            assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, definitions)]


@pytest.mark.scale
def test_a_notebook_runs_and_leaves_nothing_where_it_runs(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    started = time.perf_counter()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    # The client's limit is a cell's.
    assert time.perf_counter() - started < MOST_SECONDS
    assert list(here.iterdir()) == []
    assert list(elsewhere.glob("*/mlflow.db"))
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("image/png" in data for data in shown)
