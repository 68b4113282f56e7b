import numpy as np
import pytest
import safetensors.numpy

from molmoact2_jax.cli import main


def test_an_exported_checkpoint_has_the_same_tensors_and_side_files(golden, tmp_path, capsys):
    assert main.main(["export", str(golden / "tiny"), "--to", str(tmp_path / "new")]) == 0
    before, after = (safetensors.numpy.load_file(d / "model.safetensors") for d in (golden / "tiny", tmp_path / "new"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    for name in ("config.json", "tokenizer.json", "norm_stats.json", "processor_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (golden / "tiny" / name).read_bytes()
    assert f"{len(before)} tensors" in capsys.readouterr().out


def test_a_cast_halves_the_tensors(golden, tmp_path):
    assert main.main(["export", str(golden / "tiny"), "--to", str(tmp_path), "--dtype", "bfloat16"]) == 0
    sizes = [(d / "model.safetensors").stat().st_size for d in (golden / "tiny", tmp_path)]
    assert sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("kind", ["directory with a file", "file"])
def test_nothing_is_overwritten(golden, tmp_path, capsys, kind):
    (tmp_path / "kept").write_text("precious")
    target = tmp_path if kind != "file" else tmp_path / "kept"
    assert main.main(["export", str(golden / "tiny"), "--to", str(target)]) == 2
    assert "expected a new or empty directory" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "precious"
