"""The `meta` directory of LeRobot datasets v3.0 and v2.1: features, episodes, tasks, annotations (`io.md` 8.1)."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_log = logging.getLogger(__name__)
_INDEX_NAMES = {"episode_index", "__index_level_0__"}
_NUMBERS = ("float", "int", "uint", "bool")  # how the types of numeric features begin


@dataclasses.dataclass(frozen=True)
class Meta:
    """What the metadata says; E episodes, in the order they are listed.

    Attributes:
      root: of the dataset.
      fps: 1/s.
      features: {name: {"dtype", "shape", "names", ...}}.
      ids, lengths: i64[E], numbers and frames of episodes.
      data: path of each episode's parquet file, relative to the root.
      clips: {video feature: (path per episode, f64[E] seconds at which the episode starts in it)}.
      tasks: {task_index: instruction}.
    """

    root: pathlib.Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    ids: np.ndarray
    lengths: np.ndarray
    data: tuple[str, ...]
    clips: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    tasks: Mapping[int, str]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Features that are colour pictures, in the dataset's order."""
        return tuple(name for name, feature in self.features.items() if _is_picture(feature))

    @property
    def numbers(self) -> dict[str, tuple[int, ...]]:
        """{numeric feature: shape of a row}, single numbers as ()."""
        chosen = {n: f for n, f in self.features.items() if f["dtype"].startswith(_NUMBERS)}
        return {n: () if list(f["shape"]) in ([], [1]) else tuple(f["shape"]) for n, f in chosen.items()}

    def meta_files(self) -> list[pathlib.Path]:
        """Files under `meta`."""
        return sorted(path for path in (self.root / "meta").rglob("*") if path.is_file())

    def files(self) -> list[pathlib.Path]:
        """Every file the dataset consists of."""
        videos = {path for paths, _ in self.clips.values() for path in paths}
        return self.meta_files() + [self.root / path for path in sorted({*self.data, *videos})]

    def channels(self, name: str) -> tuple[str, ...]:
        """Returns one word per channel of a feature: the dataset's own, or numbered."""
        if name not in self.numbers:
            raise ValueError(f"{self.root}: no numeric feature {name!r}, expected one of {sorted(self.numbers)}.")
        names: Any = self.features[name].get("names")
        while isinstance(names, Mapping) or (isinstance(names, list) and names and isinstance(names[0], list)):
            names = next(iter(names.values())) if isinstance(names, Mapping) else names[0]
        width = int(np.prod(self.features[name]["shape"], dtype=int))
        return tuple(map(str, names)) if names and len(names) == width else tuple(f"{name}_{i}" for i in range(width))


def _is_picture(feature: Mapping[str, Any]) -> bool:
    depth = (feature.get("info") or {}).get("video.is_depth_map", False)
    return feature["dtype"] in ("image", "video") and not depth


def read(root: pathlib.Path) -> Meta:
    """Reads the metadata of a dataset.

    Raises:
      ValueError: no LeRobot dataset there, or metadata of another form.
    """
    path = root / "meta" / "info.json"
    if not path.exists():
        raise ValueError(f"{root}: no meta/info.json, expected the root of a LeRobot dataset (v3.0 or v2.1).")
    try:
        info = _json(path.read_text("utf-8"), path.name)
        videos = [name for name, feature in _described(info["features"]) if feature["dtype"] == "video"]
        rows, tasks = (_episodes_v3, _tasks_v3) if (root / "meta" / "episodes").is_dir() else (_episodes_v2, _tasks_v2)
        return _assemble(root, info, videos, rows(root, videos), tasks(root))
    except (AttributeError, KeyError, OSError, TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{root}: meta cannot be read ({type(error).__name__}: {error}). Fetch it again.") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {error}") from error


def _described(features: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields (name, description), of numeric features with a type and a shape that NumPy knows."""
    for name, feature in features.items():
        if feature["dtype"].startswith(_NUMBERS):
            try:
                np.empty([0, *feature["shape"]], feature["dtype"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"info.json: feature {name!r} is {feature}, expected a type and a shape") from error
        yield name, feature


def _assemble(root: pathlib.Path, info: Any, videos: list[str], rows: list[dict], tasks: dict[int, str]) -> Meta:
    def path(template: str, row: dict, prefix: str, **names: str) -> str:
        places = {name: row.get(f"{prefix}/{name}", 0) for name in ("chunk_index", "file_index")}
        number = row["episode_index"]
        chunk = number // info.get("chunks_size", 1000)
        return sys.intern(template.format(episode_index=number, episode_chunk=chunk, **places, **names))

    clips = {}
    for key in videos:
        paths = tuple(path(info["video_path"], row, f"videos/{key}", video_key=key) for row in rows)
        clips[key] = (paths, np.array([row.get(f"videos/{key}/from_timestamp", 0.0) for row in rows], np.float64))
    return Meta(
        root,
        float(info["fps"]),
        info["features"],
        np.array([row["episode_index"] for row in rows], np.int64),
        np.array([row["length"] for row in rows], np.int64),
        tuple(path(info["data_path"], row, "data") for row in rows),
        clips,
        tasks,
    )


def _episodes_v3(root: pathlib.Path, videos: Iterable[str]) -> list[dict]:
    wanted = {"episode_index", "length", "data/chunk_index", "data/file_index"}
    wanted |= {f"videos/{key}/{part}" for key in videos for part in ("chunk_index", "file_index", "from_timestamp")}
    rows: list[dict] = []
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        rows += file.read(columns=[name for name in file.schema_arrow.names if name in wanted]).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def _episodes_v2(root: pathlib.Path, videos: Iterable[str]) -> list[dict]:
    return sorted(_json_lines(root / "meta" / "episodes.jsonl"), key=lambda row: row["episode_index"])


def _tasks_v3(root: pathlib.Path) -> dict[int, str]:
    table = pq.read_table(root / "meta" / "tasks.parquet", page_checksum_verification=True)
    (texts,) = (name for name in table.column_names if name != "task_index")
    return dict(zip(table["task_index"].to_pylist(), strings(table[texts])))


def _tasks_v2(root: pathlib.Path) -> dict[int, str]:
    return {row["task_index"]: row["task"] for row in _json_lines(root / "meta" / "tasks.jsonl")}


def _json_lines(path: pathlib.Path) -> list[dict]:
    lines = enumerate(path.read_bytes().decode("utf-8", "surrogateescape").split("\n"), 1)
    return [_json(line, f"{path.name}, line {number}") for number, line in lines if line.strip()]


def strings(column: Any) -> list[str]:
    """Returns the texts of an Arrow column. Bytes that are not UTF-8 survive as surrogates; readers refuse those."""
    return [(value or b"").decode("utf-8", "surrogateescape") for value in column.cast(pa.binary()).to_pylist()]


def annotated_tasks(root: pathlib.Path) -> dict[int, str]:
    """Reads `meta/tasks_annotated.parquet`: {episode number: instruction}.

    A file that is missing or not of the expected form gives {} (and a warning), as in the released loader: training
    falls back to the original instructions.
    """
    path = root / "meta" / "tasks_annotated.parquet"
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path)
        numbers, texts = _index(table), strings(table["task"])
        if set(table.column_names) - _INDEX_NAMES != {"task"} or len(set(numbers)) != len(texts):
            raise ValueError("expected an index of unique episode numbers and one column task")
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        _log.warning("%s: %s. The original instructions are used.", path, error)
        return {}
    return dict(zip(map(int, numbers), texts))


def _index(table: pa.Table) -> list[int]:
    """Returns the index of a data frame that pandas wrote: a column, or for one that counts only its description."""
    for name in _INDEX_NAMES & set(table.column_names):
        return table[name].to_pylist()
    described = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    for counting in described.get("index_columns", []):
        return list(range(counting["start"], counting["stop"], counting["step"]))
    raise ValueError("no index of episode numbers")


def task_episodes(root: pathlib.Path) -> dict[int, int]:
    """Reads `meta/task_to_episode.parquet`: {episode number: task_index}; {} without it, with a warning if damaged."""
    path = root / "meta" / "task_to_episode.parquet"
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, columns=["task_index", "episode_index"])
    except (OSError, ValueError, pa.ArrowException) as error:
        _log.warning("%s: %s. The tasks of the frames are used.", path, error)
        return {}
    return dict(zip(table["episode_index"].to_pylist(), table["task_index"].to_pylist()))


def canonical(names: tuple[str, ...], aliases: str) -> tuple[str, ...]:
    """Makes joint names equal across the datasets of a tag (`training.md` 4.1).

    Args:
      names: one per channel.
      aliases: "" keeps them; "so100" strips `main_`, `left_` and `right_`; "yam" maps older names of two arms of six
        joints and a gripper to `left_joint_0.pos` ... `right_gripper.pos`.
    """
    if aliases == "so100":
        return tuple(re.sub(r"^(main_|left_|right_)", "", name) for name in names)
    if aliases == "yam" and _two_arms(names):
        arm = [f"joint_{i}.pos" for i in range(6)] + ["gripper.pos"]
        return tuple(f"{side}_{name}" for side in ("left", "right") for name in arm)
    return names


def _two_arms(names: tuple[str, ...]) -> bool:
    pattern = re.compile(r"(left|right)_(joint_?\d|m\d|gripper)(\.pos)?")
    sides = ["left"] * 7 + ["right"] * 7
    return len(names) == 14 and all(pattern.fullmatch(n) and n.startswith(side) for n, side in zip(names, sides))


OLD_CAMERAS = {"yam": {"top": "camera_front", "left": "camera_left", "right": "camera_right"}}


def stored_camera(meta: Meta, key: str, aliases: str) -> str:
    """Returns the feature that holds a camera: by name, by an older one, or by the last part (`top`).

    Raises:
      ValueError: there is none; lists the cameras of the dataset.
    """
    stem, _, name = key.rpartition(".")
    old = f"{stem}.{OLD_CAMERAS.get(aliases, {}).get(name, name)}"
    ends = [camera for camera in meta.cameras if camera.rpartition(".")[2] == name]
    for candidate in (key, old, *ends):
        if candidate in meta.cameras:
            return candidate
    raise ValueError(
        f"{meta.root}: no camera {key!r}, expected one of {list(meta.cameras)}. Choose the tag of this robot, or "
        "change the tag's cameras."
    )
