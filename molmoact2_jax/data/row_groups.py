"""Pictures embedded in parquet files: row groups read last are kept."""

from __future__ import annotations

import collections
import threading
from typing import Any

import numpy as np
import pyarrow.parquet as pq

_OPEN_FILES = 64


class RowGroups:
    """Random access to the pictures of many files. Threads may share it; it pickles empty."""

    def __init__(self, keep_bytes: int = 256 << 20):
        """Makes a reader that keeps the last row groups up to `keep_bytes`, and at least one."""
        self.keep_bytes, self._kept_bytes = keep_bytes, 0
        self._files: collections.OrderedDict[str, tuple[pq.ParquetFile, np.ndarray]] = collections.OrderedDict()
        self._groups: collections.OrderedDict[tuple[str, str, int], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def picture(self, path: str, column: str, row: int) -> bytes:
        """Returns the bytes of the struct {bytes, path} in one row of a file.

        Raises:
          ValueError: the file has no such column, or the row holds no picture.
          OSError, pyarrow.ArrowException: the file cannot be read.
        """
        with self._lock:
            file, bounds = self._open(path)
            if column not in file.schema_arrow.names:
                raise ValueError(f"no column {column}, expected one of {file.schema_arrow.names}")
            group = int(np.searchsorted(bounds, row, side="right")) - 1
            if (path, column, group) not in self._groups:
                self._keep((path, column, group), file.read_row_group(group, columns=[column]).column(0))
            self._groups.move_to_end((path, column, group))
            values = self._groups[path, column, group]
        found = values[row - int(bounds[group])].as_py()
        if not found or found.get("bytes") is None:
            raise ValueError(f"row {row} of {column} holds no picture")
        return found["bytes"]

    def _keep(self, key: tuple[str, str, int], values: Any) -> None:
        self._groups[key] = values
        self._kept_bytes += values.nbytes
        while self._kept_bytes > self.keep_bytes and len(self._groups) > 1:
            self._kept_bytes -= self._groups.popitem(last=False)[1].nbytes

    def _open(self, path: str) -> tuple[pq.ParquetFile, np.ndarray]:
        """Returns a file and the first row of each of its groups, and their end."""
        opened = self._files.pop(path, None)
        if opened is None:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            opened = file, np.concatenate([[0], np.cumsum(sizes)])
        self._files[path] = opened
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return opened

    def close(self) -> None:
        with self._lock:
            self._files.clear()
            self._groups.clear()
            self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"keep_bytes": self.keep_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
