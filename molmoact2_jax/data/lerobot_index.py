"""Numeric columns of a LeRobot dataset, read once from its parquet files and kept as memory maps."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from molmoact2_jax.data import lerobot_meta, store

Columns = dict[str, np.ndarray]


def open_store(
    meta: lerobot_meta.Meta, cache: str | os.PathLike[str] | None, workers: int, progress: Callable[[int, int], None]
) -> store.Store:
    """Returns the columns, from the cache where the files are still those it was made from."""
    tables = [meta.root / path for path in sorted(set(meta.data))]
    stamp = store.stamp([*tables, *meta.meta_files()], "lerobot")
    where = store.place(meta.root, "columns", cache)
    found = store.load(where, stamp)
    return found if found is not None else store.save(where, stamp, *build(meta, workers, progress))


def build(meta: lerobot_meta.Meta, workers: int, progress: Callable[[int, int], None]) -> tuple[Columns, dict]:
    """Reads every parquet file, in threads. Returns arrays and meta for `store.save`.

    Raises:
      ValueError: not one episode can be read.
    """
    members: dict[str, list[int]] = {}
    for i, path in enumerate(meta.data):
        members.setdefault(path, []).append(i)
    read: dict[int, tuple[int, Columns] | str] = {}
    with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
        for episodes in pool.map(lambda item: read_file(meta, *item), members.items()):
            read |= episodes
            progress(len(read), len(meta.data))
    damage = {str(i): found for i, found in sorted(read.items()) if isinstance(found, str)}
    sound = [found for _, found in sorted(read.items()) if not isinstance(found, str)]
    if read and not sound:
        raise ValueError(f"{meta.root}: none of {len(read)} episodes can be read, the first: {damage['0']}.")
    lengths = [0 if str(i) in damage else int(meta.lengths[i]) for i in range(len(meta.data))]
    firsts = [found[0] if not isinstance(found, str) else -1 for _, found in sorted(read.items())]
    arrays = {"length": np.array(lengths, np.int64), "first": np.array(firsts, np.int64)}
    for name in sound[0][1] if sound else ():
        arrays[f"column:{name}"] = np.concatenate([columns[name] for _, columns in sound])
    return arrays, {"damage": damage}


def read_file(meta: lerobot_meta.Meta, path: str, episodes: Sequence[int]) -> dict[int, tuple[int, Columns] | str]:
    """Reads one parquet file.

    Returns:
      {position of the episode: (its first row in the file, its columns), or why it is damaged}.
    """
    try:
        columns = _columns(meta, path)
    except (ValueError, OSError, pa.ArrowException) as error:
        return {i: f"{path}: {error}" for i in episodes}
    found: dict[int, tuple[int, Columns] | str] = {}
    order = np.argsort(columns["episode_index"], kind="stable")
    numbers_in_order = columns["episode_index"][order]
    for i in episodes:
        rows = order[slice(*np.searchsorted(numbers_in_order, (meta.ids[i], meta.ids[i] + 1)))]
        reason = _disorder(rows, columns, int(meta.lengths[i]))
        first = int(rows[0]) if len(rows) else 0
        part = {name: values[first : first + len(rows)] for name, values in columns.items()}
        found[i] = f"{path}: {reason}" if reason else (first, part)
    return found


def _disorder(rows: np.ndarray, columns: Columns, length: int) -> str:
    """Returns why the rows of an episode are not its frames in order, "" if they are."""
    if len(rows) == 0:
        return "the episode has no frames"
    if len(rows) != length:
        return f"{len(rows)} rows, but meta says {length}"
    if rows[-1] - rows[0] != length - 1:
        return "the rows of the episode do not follow each other"
    frames = columns["frame_index"][rows]
    if not np.array_equal(frames, np.arange(length)):
        wrong = int(np.flatnonzero(frames != np.arange(length))[0])
        return f"frame_index is {frames[wrong]} in the episode's row {wrong}"
    return ""


def _columns(meta: lerobot_meta.Meta, path: str) -> Columns:
    if not (meta.root / path).exists():
        raise ValueError("the file is missing")
    shapes = meta.numbers
    file = pq.ParquetFile(meta.root / path, page_checksum_verification=True)
    missing = [name for name in shapes if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"no columns {missing}, which meta/info.json lists")
    table = file.read(columns=list(shapes))
    return {name: numbers(table[name], shape, meta.features[name]["dtype"], name) for name, shape in shapes.items()}


def numbers(column: Any, shape: tuple[int, ...], dtype: str, name: str) -> np.ndarray:
    """Returns an Arrow column as [N, *shape].

    Raises:
      ValueError: values are missing, are lists of other lengths than the shape says, or no numbers of the kind that the
        metadata says (floating point, whole, bool).
    """
    values = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width, rows = int(np.prod(shape, dtype=int)), len(values)
    while pa.types.is_nested(values.type):
        values = _flat(values, name)
    if values.null_count:
        raise ValueError(f"column {name} lacks {values.null_count} values")
    if not (
        pa.types.is_primitive(values.type) and np.dtype(values.type.to_pandas_dtype()).kind == np.dtype(dtype).kind
    ):
        raise ValueError(f"column {name} is {values.type}, expected {dtype}")
    if len(values) != rows * width:
        raise ValueError(f"column {name} has {len(values)} numbers in {rows} rows, expected {list(shape)} each")
    return values.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def _flat(values: Any, name: str) -> Any:
    if pa.types.is_struct(values.type):
        raise ValueError(f"column {name} is {values.type}, expected numbers")
    if not pa.types.is_fixed_size_list(values.type):
        widths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(widths) > 1:
            raise ValueError(f"column {name} has rows of {sorted(map(str, widths))} values, expected equal ones")
    return values.flatten()
