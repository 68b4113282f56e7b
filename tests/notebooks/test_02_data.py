import pathlib

import nbclient
import nbformat
import pytest

PATH = pathlib.Path(__file__).parents[2] / "notebooks" / "02_data.ipynb"


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(PATH.parent)}})
    return client.execute()


def texts(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def test_the_notebook_runs_and_shows_what_it_says(executed):
    shown = texts(executed)
    assert "12 episodes, 360 frames" in shown
    assert "intact: True" in shown
    assert "as recorded -> nothing to remark" in shown
    assert "look like degrees, where the tag has radians" in shown
    assert "not finite" in shown and "observation.images.wrist" in shown and "errors left: 0" in shown
    assert "The task is to open the box" in shown or "The task is to put the ball into the box" in shown
    assert "a new loader goes on with the same batch" in shown


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
