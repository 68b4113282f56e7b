"""Executes a notebook from top to bottom, in its own directory and process."""

import pathlib
from typing import NamedTuple

import nbclient
import nbformat
import pytest

DIRECTORY = pathlib.Path(__file__).parents[2] / "notebooks"


class Shown(NamedTuple):
    """What a notebook printed, and how many pictures it drew."""

    text: str
    pictures: int


@pytest.fixture(scope="session")
def execute():
    """A function from the name of a notebook to what it shows."""

    def run(name: str) -> Shown:
        notebook = nbformat.read(DIRECTORY / f"{name}.ipynb", as_version=4)
        client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(DIRECTORY)}})
        outputs = [output for cell in client.execute().cells for output in cell.get("outputs", ())]
        text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
        return Shown(text, sum("image/png" in output.get("data", ()) for output in outputs))

    return run
