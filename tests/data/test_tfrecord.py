import pickle

import numpy as np
import pytest

from molmoact2_jax.data import tfrecord, wire

RECORDS = [b"", b"a", bytes(range(256)) * 40, b"last"]


@pytest.fixture
def path(tmp_path):
    tfrecord.write(tmp_path / "x.tfrecord", RECORDS)
    return tmp_path / "x.tfrecord"


def read_all(path):
    found = tfrecord.scan(path)
    with path.open("rb") as file:
        return [tfrecord.read(file, o, n) for o, n in zip(found.offsets.tolist(), found.lengths.tolist())], found.damage


def test_records_read_back_as_written(path):
    assert read_all(path) == (RECORDS, "")


def test_the_checksum_is_crc32c_rotated_and_shifted():
    rotated = (tfrecord.masked_crc(b"123456789") - 0xA282EAD8) % 2**32
    assert (rotated >> 17 | rotated << 15) % 2**32 == 0xE3069283  # the published check value of CRC32C


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def broken():
        yield b"a"
        raise RuntimeError("the writer stops")

    with pytest.raises(RuntimeError):
        tfrecord.write(tmp_path / "x.tfrecord", broken())
    assert not (tmp_path / "x.tfrecord").exists()


@pytest.mark.parametrize(("keep", "records"), [(0, 0), (5, 0), (14, 0), (40, 2), (-1, 3), (-6, 3)])
def test_a_truncated_file_keeps_the_records_before_the_cut(path, keep, records):
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    found, damage = read_all(path)
    assert found == RECORDS[:records]
    assert bool(damage) == (keep != 0)


def test_a_wrong_length_header_stops_the_walk_with_its_place(path):
    data = bytearray(path.read_bytes())
    data[16] ^= 1  # the length of the second record
    path.write_bytes(data)
    found, damage = read_all(path)
    assert found == RECORDS[:1] and "byte 16" in damage


def test_a_flipped_byte_is_refused_and_leaves_the_other_records(path):
    data = bytearray(path.read_bytes())
    place = int(tfrecord.scan(path).offsets[2]) + 1000
    data[place] ^= 4
    path.write_bytes(data)
    found = tfrecord.scan(path)
    with path.open("rb") as file:
        with pytest.raises(ValueError, match="checksum"):
            tfrecord.read(file, int(found.offsets[2]), int(found.lengths[2]))
        assert tfrecord.read(file, int(found.offsets[3]), int(found.lengths[3])) == RECORDS[3]


def test_files_stay_open_within_their_limit_and_pickle_closed(tmp_path):
    paths = [str(tmp_path / str(i)) for i in range(4)]
    for name in paths:
        tfrecord.write(name, [b"x"])
    files = tfrecord.Files(limit=2)
    opened = [files.get(name) for name in paths]
    assert files.get(paths[3]) is opened[3] and files.get(paths[0]) is not opened[0]
    assert pickle.loads(pickle.dumps(files)).limit == 2
    assert not opened[0].closed  # whoever still holds an evicted file may go on reading


def test_byte_spans_are_where_the_values_lie():
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"a": tfds.features.Sequence(tfds.features.Text()), "n": tfds.features.Tensor(shape=(3,), dtype=np.float32)}
    )
    values = ["", "x" * 300, "yz"]
    record = features.serialize_example(features.encode_example({"a": values, "n": np.ones(3, np.float32)}))
    spans = wire.byte_spans(record, ["a", "n", "absent"])
    offsets, lengths = spans["a"]
    assert [record[o : o + n].decode() for o, n in zip(offsets.tolist(), lengths.tolist())] == values
    assert set(spans) == {"a"}


@pytest.mark.parametrize("record", [b"\xff", b"\x08\x01", b"\x0a\x7f\x00"])
def test_bytes_that_are_no_example_are_refused(record):
    with pytest.raises(ValueError):
        wire.byte_spans(record, ["a"])
