import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))

import formats

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset and its statistics."""
    root = tmp_path_factory.mktemp("data")
    made = formats.sound_copies(root)[formats.V3]
    assert main.main(["data", "stats", str(made), "--tag", "mine", "--out", str(root / "stats.json")]) == 0
    return str(made), str(root / "stats.json")


def init(data, directory, *more):
    return main.main(["init", data[0], "--stats", data[1], "--to", str(directory), *more])


def test_the_files_fit_the_dataset(data, tmp_path, capsys):
    assert init(data, tmp_path / "model") == 0
    assert "small" in capsys.readouterr().out
    assert config_json.load(tmp_path / "model").max_horizon == 10


def test_a_model_is_never_overwritten(data, tmp_path, capsys):
    assert init(data, tmp_path) == 0
    before = (tmp_path / "config.json").read_bytes()
    assert init(data, tmp_path, "--sizes", "medium") == 2
    assert "holds a model already" in capsys.readouterr().err and (tmp_path / "config.json").read_bytes() == before
