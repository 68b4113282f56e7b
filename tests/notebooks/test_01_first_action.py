import pathlib

import nbclient
import nbformat
import pytest

PATH = pathlib.Path(__file__).parents[2] / "notebooks" / "01_first_action.ipynb"


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}})
    return client.execute()


def texts(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def test_the_notebook_runs_and_shows_what_it_says(executed):
    shown = texts(executed)
    assert "actions: float32 (10, 7) = steps, channels" in shown
    assert "largest difference from the released implementation" in shown
    assert "programs compiled by these calls: 0" in shown
    assert "the same tokens as the released implementation's" in shown
    assert shown.count("refused: ") == 4 and "franka" in shown


def test_the_pictures_and_the_chunks_are_drawn(executed):
    drawn = [
        output for cell in executed.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 4


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
