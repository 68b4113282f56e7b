import nbformat
import pytest

from tests.notebooks.conftest import DIRECTORY


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
