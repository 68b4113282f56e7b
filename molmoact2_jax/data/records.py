"""Records of a multimodal set by number: JSON lines or Parquet files in a directory, pictures beside them or inside."""

from __future__ import annotations

import bisect
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from molmoact2_jax.data import store

BLOCK = 1 << 24  # bytes read at a time while lines are counted


class Records(Protocol):
    """Records by number. Pickles without open files; threads may share it."""

    digest: str

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Reads one record.

        Raises:
          ValueError: it is damaged.
        """


def open_records(directory: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Records:
    """Opens all `*.jsonl` or all `*.parquet` files of a directory, in the order of their names.

    Args:
      directory: of one set.
      cache: where the index of lines is kept, beside the data if None (`store.place`).

    Raises:
      ValueError: there is neither kind of file, or both, or no record, or a Parquet file without a readable end.
    """
    root = pathlib.Path(directory)
    lines, tables = (sorted(root.glob(f"*.{kind}")) for kind in ("jsonl", "parquet"))
    if bool(lines) == bool(tables):
        raise ValueError(
            f"{root}: {len(lines)} .jsonl and {len(tables)} .parquet files, expected one kind. Remove the other."
        )
    found: Records = Lines(root, lines, cache) if lines else Tables(root, tables)
    if not len(found):
        raise ValueError(f"{root}: no records, expected at least one. Check the files.")
    return found


class Lines:
    """JSON lines. Where each begins is found once and kept (`store`)."""

    def __init__(self, root: pathlib.Path, paths: Sequence[pathlib.Path], cache: str | os.PathLike[str] | None = None):
        self.digest = store.digest(paths, root, "lines")
        self._paths = tuple(paths)
        place, stamp = store.place(root, "lines", cache), store.stamp(paths)
        index = store.load(place, stamp) or store.save(place, stamp, _index(paths), {})
        self._index = index

    def __len__(self) -> int:
        return len(self._index["start"])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        path = self._paths[self._index["file"][index]]
        start, length = int(self._index["start"][index]), int(self._index["length"][index])
        with path.open("rb") as file:
            line = os.pread(file.fileno(), length, start)
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, byte {start}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, byte {start}: {type(record).__name__}, expected an object")
        return record


def _index(paths: Sequence[pathlib.Path]) -> dict[str, np.ndarray]:
    """Returns file, start and length of every line that is not blank."""
    files, starts, lengths = [], [], []
    for number, path in enumerate(paths):
        ends = [*_line_ends(path), path.stat().st_size]
        begins = [0, *(end + 1 for end in ends[:-1])]
        size = np.subtract(ends, begins)
        kept = size > 1  # a lone "\r" is blank too
        files.append(np.full(int(kept.sum()), number, np.int32))
        starts.append(np.asarray(begins, np.int64)[kept])
        lengths.append(size[kept].astype(np.int64))
    return {"file": np.concatenate(files), "start": np.concatenate(starts), "length": np.concatenate(lengths)}


def _line_ends(path: pathlib.Path) -> list[int]:
    ends: list[int] = []
    with path.open("rb") as file:
        at = 0
        while block := file.read(BLOCK):
            ends += (at + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))).tolist()
            at += len(block)
    return ends


class Tables:
    """Parquet files. The row group read last is kept, since neighbours are often read together."""

    def __init__(self, root: pathlib.Path, paths: Sequence[pathlib.Path]):
        import pyarrow
        from pyarrow import parquet

        self.digest = store.digest(paths, root, "tables")
        self._paths = tuple(paths)
        self._groups: list[tuple[int, int]] = []
        self._starts = [0]
        for number, path in enumerate(paths):
            try:
                metadata = parquet.read_metadata(path)
            except (OSError, pyarrow.ArrowException) as error:
                raise ValueError(f"{path}: no Parquet file can be opened: {error}. Fetch it again.") from error
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._lock = threading.Lock()
        self._held: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        place = bisect.bisect_right(self._starts, index) - 1
        row = self._group(place).slice(index - self._starts[place], 1).to_pylist()[0]
        return {key: value for key, value in row.items() if value is not None}

    def _group(self, place: int) -> Any:
        import pyarrow
        from pyarrow import parquet

        with self._lock:
            if self._held is None or self._held[0] != place:
                number, group = self._groups[place]
                try:
                    file = parquet.ParquetFile(self._paths[number], page_checksum_verification=True)
                    table = file.read_row_group(group)
                except (OSError, pyarrow.ArrowException) as error:
                    raise ValueError(f"{self._paths[number]}, row group {group}: {error}") from error
                self._held = place, table
            return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
