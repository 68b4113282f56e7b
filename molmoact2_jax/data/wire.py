"""Where byte strings lie in a serialised `tf.train.Example`, so that a picture can be read without its episode."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

Spans = tuple[np.ndarray, np.ndarray]
_LENGTH_DELIMITED = 2
_BYTES_LIST = 1


def byte_spans(record: bytes, keys: Collection[str]) -> dict[str, Spans]:
    """Finds the values of byte-string features.

    Args:
      record: a serialised Example (protobuf: Example.features.feature is a map from names to Feature).
      keys: names of features to look for.

    Returns:
      {key: (offsets i64[n], lengths i32[n])} into `record`, for the keys that hold byte strings.

    Raises:
      ValueError: the bytes are no Example.
    """
    wanted = {key.encode(): key for key in keys}
    found: dict[str, Spans] = {}
    for features in _children(record, 0, len(record), 1):
        for entry in _children(record, *features, 1):
            name, value = next(_children(record, *entry, 1), None), next(_children(record, *entry, 2), None)
            key = wanted.get(record[slice(*name)]) if name else None
            if key is not None and value:
                for values in _children(record, *value, _BYTES_LIST):
                    found[key] = _strings(record, *values)
    return found


def _strings(record: bytes, start: int, stop: int) -> Spans:
    spans = np.array(list(_children(record, start, stop, 1)), np.int64).reshape(-1, 2)
    return spans[:, 0], (spans[:, 1] - spans[:, 0]).astype(np.int32)


def _children(record: bytes, start: int, stop: int, field: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of each length-delimited value of one field of the message in record[start:stop]."""
    place = start
    while place < stop:
        tag, place = _varint(record, place, stop)
        if tag & 7 != _LENGTH_DELIMITED:
            raise ValueError(f"wire type {tag & 7} at byte {place}, expected 2: the record is no tf.train.Example")
        length, place = _varint(record, place, stop)
        if place + length > stop:
            raise ValueError(f"a value at byte {place} reaches past its message: the record is no tf.train.Example")
        if tag >> 3 == field:
            yield place, place + length
        place += length


def _varint(record: bytes, place: int, stop: int) -> tuple[int, int]:
    value, shift = 0, 0
    while place < stop:
        byte = record[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError(f"a number runs past byte {stop}: the record is no tf.train.Example")
