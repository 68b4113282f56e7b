import pathlib
import re

import nbclient
import nbformat
import pytest

PATH = pathlib.Path(__file__).parents[2] / "notebooks" / "03_finetune.ipynb"


def executed():
    """What the notebook prints on one device and with the compiler's own settings, as on a laptop."""
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(PATH.parent)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        outputs = [output for cell in client.execute().cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


@pytest.mark.slow
def test_the_notebook_trains_a_new_robot_and_exports_it():
    shown = executed()
    assert "robots of the checkpoint: ['libero', 'yam', 'toy_arm']" in shown
    for name in ("flow", "language"):
        first, last = map(float, re.search(rf"{name} loss (\d+\.\d+) -> (\d+\.\d+)", shown).groups())
        assert last < 0.25 * first, name
    after, before = map(float, re.search(r"after: (0\.\d+) rad, before (0\.\d+) rad", shown).groups())
    assert after < 0.6 * before
    assert "same actions after export: True" in shown


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
