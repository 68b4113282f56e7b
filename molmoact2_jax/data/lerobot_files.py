"""The files of a LeRobot v3.0 dataset, made from recorded episodes: tables, joined videos, metadata (`io.md` 8.1)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import lerobot_index, video

CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_WHOLE = {"dtype": "int64", "shape": [1], "names": None}
_DEFAULTS = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{name: _WHOLE for name in ("frame_index", "episode_index", "index", "task_index")},
}


def column(values: Sequence[Any], feature: Mapping[str, Any]) -> pa.Array:
    """Returns an Arrow column of a feature: a struct {bytes, path}, numbers, or lists of them."""
    if feature["dtype"] == "image":
        return pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    numbers = np.asarray(values, feature["dtype"])
    flat = pa.array(numbers.reshape(-1))
    for size in reversed(feature["shape"] if list(feature["shape"]) not in ([], [1]) else []):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def assemble(episodes: Sequence[pathlib.Path], root: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes a dataset.

    Args:
      episodes: directories with `data.parquet`, `episode.json` and a `NAME.mp4` per video feature.
      root: of the dataset.
      settings: fps, features, robot_type.
    """
    (root / "meta").mkdir(parents=True)
    features = {**settings["features"], **_DEFAULTS}
    heads = [json.loads((episode / "episode.json").read_text()) for episode in episodes]
    tasks = {task: i for i, task in enumerate(dict.fromkeys(task for head in heads for task in head["tasks"]))}
    rows = _rows(heads)
    _write_data(episodes, root, rows, [[tasks[task] for task in head["tasks"]] for head in heads])
    for name, feature in features.items():
        if feature["dtype"] == "video":
            _write_video(name, episodes, root, rows, settings["fps"])
    stats = _statistics(episodes, features, rows)
    (root / "meta" / "stats.json").write_text(json.dumps(stats))
    _write_indexed(root / "meta" / "tasks.parquet", "task_index", list(tasks.values()), list(tasks))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    counts = {"total_episodes": len(rows), "total_frames": rows[-1]["dataset_to_index"], "total_tasks": len(tasks)}
    (root / "meta" / "info.json").write_text(json.dumps(_info(settings, features, counts), indent=2))


def _rows(heads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row of `meta/episodes` per episode, without places and statistics."""
    stops = np.cumsum([head["length"] for head in heads]).tolist()
    return [
        {
            "episode_index": i,
            "tasks": list(dict.fromkeys(head["tasks"])),
            "length": head["length"],
            "dataset_from_index": stop - head["length"],
            "dataset_to_index": stop,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for i, (head, stop) in enumerate(zip(heads, stops))
    ]


def _info(settings: Mapping[str, Any], features: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": settings["robot_type"],
        **counts,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": settings["fps"],
        "splits": {"train": f"0:{counts['total_episodes']}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if any(feature["dtype"] == "video" for feature in features.values()) else None,
        "features": features,
    }


def _packs(files: Sequence[pathlib.Path], megabytes: int) -> list[list[int]]:
    """Groups neighbours so that no group of two or more exceeds a size."""
    groups: list[list[int]] = []
    total = 0
    for i, file in enumerate(files):
        size = file.stat().st_size
        if not groups or total + size > megabytes << 20:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups


def _place(rows: list[dict[str, Any]], members: Iterable[int], prefix: str, number: int) -> dict[str, int]:
    place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
    for i in members:
        rows[i] |= {f"{prefix}/{name}": value for name, value in place.items()}
    return place


def _write_data(
    episodes: Sequence[pathlib.Path], root: pathlib.Path, rows: list[dict[str, Any]], tasks: Sequence[Sequence[int]]
) -> None:
    files = [episode / "data.parquet" for episode in episodes]
    for number, members in enumerate(_packs(files, DATA_MB)):
        path = root / DATA_PATH.format(**_place(rows, members, "data", number))
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = [_with_indices(pq.read_table(files[i]), rows[i], tasks[i]) for i in members]
        with pq.ParquetWriter(path, tables[0].schema, write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)


def _with_indices(table: pa.Table, row: Mapping[str, Any], tasks: Sequence[int]) -> pa.Table:
    frames = np.arange(row["length"])
    indices = {
        "frame_index": frames,
        "episode_index": np.full_like(frames, row["episode_index"]),
        "index": frames + row["dataset_from_index"],
        "task_index": np.asarray(tasks),
    }
    for name, values in indices.items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    return table


def _write_video(
    name: str, episodes: Sequence[pathlib.Path], root: pathlib.Path, rows: list[dict[str, Any]], fps: int
) -> None:
    files = [episode / f"{name}.mp4" for episode in episodes]
    for number, members in enumerate(_packs(files, VIDEO_MB)):
        path = root / VIDEO_PATH.format(video_key=name, **_place(rows, members, f"videos/{name}", number))
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = [rows[i]["length"] / fps for i in members]
        video.concatenate([files[i] for i in members], path, seconds)
        for i, stop, length in zip(members, np.cumsum(seconds).tolist(), seconds):
            rows[i] |= {f"videos/{name}/from_timestamp": stop - length, f"videos/{name}/to_timestamp": stop}


def _statistics(
    episodes: Sequence[pathlib.Path], features: Mapping[str, Mapping[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, dict[str, list[float]]]:
    """Adds statistics of each episode to its row. Returns those of the whole dataset; numeric features only."""
    chosen = {n: f for n, f in features.items() if n not in _DEFAULTS and f["dtype"] not in ("image", "video")}
    values: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    for episode, row in zip(episodes, rows):
        table = pq.read_table(episode / "data.parquet", columns=list(chosen))
        for name, feature in chosen.items():
            part = lerobot_index.numbers(table[name], tuple(feature["shape"]), feature["dtype"], name)
            values[name].append(part)
            row |= {f"stats/{name}/{kind}": found for kind, found in _moments(part).items()}
    return {name: _moments(np.concatenate(parts)) for name, parts in values.items()}


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    exact = values.astype(np.float64)
    moments = {"min": exact.min(0), "max": exact.max(0), "mean": exact.mean(0), "std": exact.std(0)}
    quantiles = {name: np.quantile(exact, level, axis=0) for name, level in _QUANTILES.items()}
    return {name: found.tolist() for name, found in (moments | quantiles).items()} | {"count": [len(values)]}


def _write_indexed(path: pathlib.Path, name: str, numbers: Sequence[int], index: Sequence[str]) -> None:
    """Writes a table as pandas would write a data frame whose index is text, as LeRobot reads it."""
    label = "__index_level_0__"
    table = pa.table({name: pa.array(numbers, pa.int64()), label: pa.array(index, pa.string())})
    kinds = {name: ("int64", "int64"), label: ("unicode", "object")}
    columns = [
        {
            "name": None if key == label else key,
            "field_name": key,
            "pandas_type": kind,
            "numpy_type": numpy,
            "metadata": None,
        }
        for key, (kind, numpy) in kinds.items()
    ]
    described = {"index_columns": [label], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path, write_page_checksum=True)
