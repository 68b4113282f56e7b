"""Both wires carry numbers exactly, carry what other people's clients write, and refuse everything else in words."""

import base64
import io
import json
import pathlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from molmoact2_jax.serve import wire, wire_json, wire_msgpack

DTYPES = st.sampled_from(["?", "i1", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
KEYS = st.text().filter(lambda key: key != "__numpy__")  # json_numpy's own mark
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text() | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
WIRES = [(wire_msgpack.pack, wire_msgpack.unpack), (wire_json.dumps, wire_json.loads)]


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


@pytest.mark.parametrize(("write", "read"), WIRES, ids=["msgpack", "json"])
@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_what_is_written_is_read_back_to_the_bit(write, read, value):
    assert same(value, read(write(value)))


@pytest.mark.parametrize(("write", "read"), WIRES, ids=["msgpack", "json"])
@settings(max_examples=150, deadline=None)
@given(value=st.dictionaries(KEYS, ARRAYS, min_size=1, max_size=2), data=st.data())
def test_damaged_messages_are_read_or_refused_and_nothing_else(write, read, value, data):
    written = write(value)
    whole = written.encode() if isinstance(written, str) else written
    cut = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=5))
    for damaged in (whole[:cut], whole[:cut] + junk + whole[cut + len(junk) :], junk):
        said = refusal(read, damaged)
        assert "\n" not in said and len(said) < 400


def refusal(read, damaged):
    """What a wire says about damaged bytes; nothing where they happen to be a message."""
    try:
        read(damaged)
    except wire.WireError as error:
        return str(error)
    return ""


def packed_array(**changed):
    fields = {"__ndarray__": True, "data": bytes(12), "dtype": "<f4", "shape": [3], **changed}
    return msgpack.packb({"state": {key.encode(): value for key, value in fields.items()}})


def json_array(**changed):
    fields = {"__numpy__": base64.b64encode(bytes(12)).decode(), "dtype": "<f4", "shape": [3]}
    if "data" in changed:
        changed["__numpy__"] = base64.b64encode(changed.pop("data")).decode()
    return json.dumps({"state": fields | changed})


@pytest.mark.parametrize(
    ("make", "read"), [(packed_array, wire_msgpack.unpack), (json_array, wire_json.loads)], ids=["msgpack", "json"]
)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(dtype="|O"), "array: dtype '|O', expected booleans, integers or floats"),
        (dict(dtype="|V8"), "array: dtype '|V8'"),
        (dict(dtype="<c8"), "array: dtype '<c8'"),
        (dict(dtype="<U4"), "array: dtype '<U4'"),
        (dict(dtype="<f16"), "array: dtype '<f16'"),
        (dict(dtype=["f4", "f4"]), "array: dtype ["),
        (dict(dtype=None), "array: dtype None"),
        (dict(shape=[10**12, 10**12]), "array: 12 bytes, expected 4000000000000000000000000 bytes"),
        (dict(shape=[-1]), "expected sizes that are not negative"),
        (dict(shape=[3.0]), "expected sizes that are not negative"),
        (dict(shape=[True, 3]), "expected sizes that are not negative"),
        (dict(shape=[1] * 7), "expected at most 6 sizes"),
        (dict(shape="3"), "expected at most 6 sizes"),
        (dict(data=bytes(11)), "array: 11 bytes, expected 12 bytes for <f4[3]. Was it cut short?"),
        (dict(data=bytes(13)), "array: 13 bytes, expected 12"),
    ],
    ids=lambda value: json.dumps(value, default=str)[:30] if isinstance(value, dict) else "",
)
def test_arrays_of_objects_or_of_a_size_that_is_not_there_are_refused(make, read, changed, message):
    assert read(make())["state"].shape == (3,)
    with pytest.raises(wire.WireError) as refused:
        read(make(**changed))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "cannot read msgpack"),
        (msgpack.packb({"a": 1})[:-1], "cannot read msgpack"),
        (msgpack.packb(1) + b"\x01", "cannot read msgpack"),
        (msgpack.packb(msgpack.ExtType(4, b"abc")), "extension type 4"),
        (msgpack.packb({"t": msgpack.Timestamp(1)}), "Timestamp, expected numbers"),
        (msgpack.packb({b"a": 1}), "key b'a', expected text"),
        (b"\x91" * 13 + b"\x01", "nested deeper than 12"),
        (b"\x91" * 100_000 + b"\x01", "message: "),
        (b"\xdd\xff\xff\xff\xff", "cannot read msgpack"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), "number: str"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "cannot read msgpack"),
        (b"\xa1\xff", "cannot read msgpack"),
    ],
)
def test_msgpack_that_is_no_message_is_refused(message, said):
    with pytest.raises(wire.WireError) as refused:
        wire_msgpack.unpack(message)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read JSON"),
        ('{"a": 1', "cannot read JSON"),
        (b"\xff\xfe", "cannot read JSON"),
        ("[" * 13 + "]" * 13, "nested deeper than 12"),
        ("[" * 200_000, "cannot read JSON"),
        ('{"a": {"__numpy__": "??", "dtype": "<f4", "shape": [1]}}', "expected base64"),
        ('{"a": {"__numpy__": 3, "dtype": "<f4", "shape": [1]}}', "expected base64"),
    ],
)
def test_json_that_is_no_message_is_refused(text, said):
    with pytest.raises(wire.WireError) as refused:
        wire_json.loads(text)
    assert said in str(refused.value)


def test_objects_are_not_sent_either():
    for write in (wire_msgpack.pack, wire_json.dumps):
        for bad in (np.array([None]), np.array([1j]), np.array(["a"]), {1, 2}):
            with pytest.raises(TypeError, match="cannot send"):
                write({"a": bad})


def test_json_numpy_of_other_peoples_clients_is_read_and_ours_is_theirs():
    written = '{"state": {"__numpy__": "AACAPwAAAEA=", "dtype": "<f4", "shape": [2]}}'  # json_numpy.dumps 2.1.1
    assert same(wire_json.loads(written)["state"], np.array([1, 2], np.float32))
    assert wire_json.dumps({"state": np.array([1, 2], np.float32)}) == written


def test_plain_json_has_lists():
    assert json.loads(wire_json.dumps({"a": np.eye(2), "n": np.float32(1)}, plain=True)) == {
        "a": [[1, 0], [0, 1]],
        "n": 1,
    }


def test_the_bytes_of_the_unmodified_openpi_client_are_read_and_written():
    """`openpi_client.msgpack` is what openpi-client 0.1.2 sends for these values."""
    written = (pathlib.Path(__file__).parent / "openpi_client.msgpack").read_bytes()
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    values = {
        "observation/image": picture,
        "observation/wrist_image": picture[::-1],
        "observation/state": np.linspace(-1, 1, 8),
        "prompt": "pick up the cup",
        "step": np.int64(3),
    }
    assert same(values, wire_msgpack.unpack(written))
    assert wire_msgpack.pack(values) == written


def png(size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_travel_as_base64_or_data_url():
    for text in (png(), f"data:image/png;base64,{png()}"):
        np.testing.assert_array_equal(wire_json.picture(text, "image"), np.full((4, 6, 3), [10, 20, 30], np.uint8))


@pytest.mark.parametrize("text", ["/etc/passwd", "", "aGVsbG8=", png()[:40], png((5000, 5000))])
def test_paths_damaged_and_huge_pictures_are_refused_by_field(text):
    with pytest.raises(wire.WireError, match=r"^images\[1\]: "):
        wire_json.picture(text, "images[1]")
