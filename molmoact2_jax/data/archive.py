"""ArrayRecord files: written once, read at random. Readers stay open; records read last may be kept."""

from __future__ import annotations

import collections
import os
import pathlib
import threading
from collections.abc import Iterable
from typing import Any

_ERRORS = (RuntimeError, ValueError, IndexError)
_OPEN_FILES = 64


def write(path: pathlib.Path, records: Iterable[bytes], *, compressed: bool = True) -> int:
    """Writes records that can be read one at a time. Returns their number."""
    from array_record.python import array_record_module

    count, unfinished = 0, path.with_name(f"{path.name}.incomplete")
    writer = array_record_module.ArrayRecordWriter(
        os.fspath(unfinished), "group_size:1" if compressed else "group_size:1,uncompressed"
    )
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    unfinished.replace(path)
    return count


def count(path: str | os.PathLike[str]) -> int:
    """Returns the records in a file; 0 if its end is missing, as the library does not tell those apart.

    Raises:
      ValueError: no such file.
    """
    return int(_reader(os.fspath(path)).num_records())


def _reader(path: str) -> Any:
    from array_record.python import array_record_module

    if not os.path.exists(path):
        raise ValueError(f"{path}: the file is missing")
    try:
        return array_record_module.ArrayRecordReader(path)
    except _ERRORS as error:
        raise ValueError(f"{path}: no ArrayRecord file: {error}") from error


class Archive:
    """Random access to the records of many files. Threads may share it; it pickles empty."""

    def __init__(self, keep_bytes: int = 64 << 20):
        """Makes an archive that keeps the last records up to `keep_bytes`, and at least one."""
        self.keep_bytes, self._kept_bytes = keep_bytes, 0
        self._readers: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._kept: collections.OrderedDict[tuple[str, int], bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, number: int) -> bytes:
        """Returns one record.

        Raises:
          ValueError: the file is missing or damaged, or has no such record.
        """
        with self._lock:
            if (path, number) in self._kept:
                self._kept.move_to_end((path, number))
                return self._kept[path, number]
            record = self._fetch(path, number)
            self._kept[path, number] = record
            self._kept_bytes += len(record)
            while self._kept_bytes > self.keep_bytes and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
            return record

    def _fetch(self, path: str, number: int) -> bytes:
        reader = self._readers.pop(path, None) or _reader(path)
        self._readers[path] = reader
        if len(self._readers) > _OPEN_FILES:
            self._readers.popitem(last=False)[1].close()
        if not 0 <= number < reader.num_records():
            raise ValueError(f"{path}: no record {number} among {reader.num_records()}")
        try:
            return reader.read([number])[0]
        except _ERRORS as error:
            raise ValueError(f"{path}: record {number} is damaged: {error}") from error

    def close(self) -> None:
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()
            self._kept.clear()
            self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"keep_bytes": self.keep_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
