import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from molmoact2_jax.checkpoint.safetensors_io import Reader

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "scalar": np.asarray(7, np.int64),
    "none": np.zeros((0, 4), np.float16),
}


@pytest.fixture
def directory(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def split(directory):
    """Two shards with an index."""
    for number, names in enumerate((["a"], ["b", "scalar", "none"]), 1):
        safetensors.numpy.save_file({n: TENSORS[n] for n in names}, directory / f"model-{number}-of-2.safetensors")
    files = {name: f"model-{1 if name == 'a' else 2}-of-2.safetensors" for name in TENSORS}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("kind", ["directory", "file", "shards"])
def test_tensors_are_read_as_they_were_written(directory, kind):
    path = directory
    if kind == "file":
        path = directory / "model.safetensors"
    if kind == "shards":
        (directory / "model.safetensors").unlink()
        split(directory)
    reader = Reader(path)
    assert reader.shapes == {name: tensor.shape for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert reader.dtype(name) == tensor.dtype
        np.testing.assert_array_equal(reader.read(name), tensor)


def test_rows_are_read_alone(directory):
    reader = Reader(directory)
    np.testing.assert_array_equal(reader.read("a", slice(1, 3)), TENSORS["a"][1:3])
    np.testing.assert_array_equal(reader.read("b", slice(1)), TENSORS["b"][:1])


def test_a_file_that_is_cut_short_is_refused_by_name(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors: .* cut short; copy it again"):
        Reader(directory)


def test_a_file_that_is_cut_after_it_was_opened_is_refused_by_name(directory):
    reader, path = Reader(directory), directory / "model.safetensors"
    with open(path, "r+b") as handle:
        handle.truncate(64)
    with pytest.raises(ValueError, match=r"model\.safetensors: ends inside tensor a"):
        reader.read("a")


@pytest.mark.parametrize("content", [b"", b"\x01", b"not a tensor file at all", struct.pack("<Q", 4) + b"{{{{"])
def test_a_file_of_another_kind_is_refused_by_name(directory, content):
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*expected a safetensors file"):
        Reader(directory)


def test_a_type_that_is_not_read_is_named(directory):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(ValueError, match="x F8_E4M3, expected one of F64"):
        Reader(directory)


def test_missing_shards_are_all_named(directory):
    (directory / "model.safetensors").unlink()
    split(directory)
    (directory / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json: shards \['model-2-of-2\.safetensors'\]"):
        Reader(directory)


def test_a_directory_without_tensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        Reader(tmp_path)
