"""TFRecord without TensorFlow: `<u64 length><u32 crc of it><data><u32 crc of data>`, little endian, masked CRC32C."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import struct
import threading
from collections.abc import Iterable
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

HEADER, FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Records:
    """Where the records of one file lie.

    Attributes:
      offsets: i64[R], byte where a record's data begins.
      lengths: i64[R], bytes of data.
      damage: why the walk stopped before the end of the file, "" where it did not.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    damage: str


def masked_crc(data: bytes) -> int:
    """Returns the checksum that the format stores: CRC32C, rotated and shifted."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: str | os.PathLike[str]) -> Records:
    """Walks the headers of a file, seeking past the data; stops where a header is cut or fails its checksum."""
    offsets: list[int] = []
    lengths: list[int] = []
    damage, place, size = "", 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while place < size and not damage:
            header = os.pread(file.fileno(), HEADER, place)
            damage = _header_damage(header, place, size)
            if not damage:
                (length,) = struct.unpack_from("<Q", header)
                offsets.append(place + HEADER)
                lengths.append(length)
                place += HEADER + length + FOOTER
    return Records(np.array(offsets, np.int64), np.array(lengths, np.int64), damage)


def _header_damage(header: bytes, place: int, size: int) -> str:
    if len(header) < HEADER:
        return f"the file ends inside the header at byte {place}"
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        return f"the length at byte {place} fails its checksum"
    if place + HEADER + length + FOOTER > size:
        return f"the record at byte {place} needs {length} bytes, but the file ends at {size}"
    return ""


def read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Reads the data of one record and checks it.

    Raises:
      ValueError: the data ends early or fails its checksum.
    """
    data = os.pread(file.fileno(), length + FOOTER, offset)
    if len(data) != length + FOOTER:
        raise ValueError(f"{file.name}: {len(data)} bytes at {offset}, expected {length + FOOTER}")
    record, (crc,) = data[:length], struct.unpack("<I", data[length:])
    if masked_crc(record) != crc:
        raise ValueError(f"{file.name}: the record at byte {offset} fails its checksum")
    return record


def write(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Writes records under a temporary name, then renames. Returns their number."""
    count, unfinished = 0, pathlib.Path(f"{path}.incomplete")
    with unfinished.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc(length)))
            file.write(record)
            file.write(struct.pack("<I", masked_crc(record)))
            count += 1
    unfinished.replace(path)
    return count


class Files:
    """The files read last, kept open; an evicted one closes when its last reader lets it go. Pickles without them."""

    def __init__(self, limit: int = 128):
        self.limit = limit
        self._open: collections.OrderedDict[str, BinaryIO] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> BinaryIO:
        with self._lock:
            file = self._open.pop(path, None) or open(path, "rb")  # noqa: SIM115 (kept open on purpose)
            self._open[path] = file
            if len(self._open) > self.limit:
                self._open.popitem(last=False)
            return file

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
