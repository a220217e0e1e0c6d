"""Every notebook runs from top to bottom, as it ships; none is kept with outputs, which would go stale."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    done = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) == sum(cell.source.startswith("draw(") for cell in notebook.cells)


def test_there_are_some():
    assert NOTEBOOKS
