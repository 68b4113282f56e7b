"""Repacking: any dataset to ArrayRecord files with one ready picture per record, and the reader of the result."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.data import archive, images, pictures, store, table
from molmoact2_jax.data.source import EpisodeSource, SampleError

_log = logging.getLogger(__name__)
MANIFEST, PLAN = "repacked.json", "plan.json"
ENCODINGS = ("stored", "jpeg", "png", "raw")
_WINDOW = 32  # frames of an episode decoded at a time


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to repack.

    Attributes:
      encoding: "stored" copies JPEG and PNG bytes as they are (video frames become JPEG), "raw" keeps pixels: largest
        and fastest to read.
      size: (height, width) that pictures are resized to as for the model, or None for their own. "stored" needs None.
      quality: of JPEG.
      episodes_per_shard: episodes in a file.
      budget: fraction of pictures that may be unreadable before repacking stops.
    """

    encoding: str = "jpeg"
    size: tuple[int, int] | None = None
    quality: int = 95
    episodes_per_shard: int = 16
    budget: float = 0.01

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"repack: encoding {self.encoding!r}, expected one of {ENCODINGS}.")
        if self.encoding == "stored" and self.size is not None:
            raise ValueError(f'repack: encoding "stored" with size {self.size}, expected None. Use "jpeg" or "raw".')


def repack(
    source: EpisodeSource,
    directory: str | os.PathLike[str],
    plan: Plan = Plan(),
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = table.silent,
) -> pathlib.Path:
    """Writes a repacked copy of a source; run again after an interruption, it goes on with the next shard.

    Unreadable pictures are left out, logged, and named again by the reader.

    Args:
      source: any dataset.
      directory: of the result. It counts as a dataset once `repacked.json` is there.
      plan: encoding and size.
      workers: threads, each with a source of its own; decoding and resizing run in parallel.
      progress: called with (episodes done, all episodes).

    Returns:
      The directory.

    Raises:
      ValueError: the directory holds another dataset, or more pictures are unreadable than the budget allows.
    """
    root = pathlib.Path(directory)
    if (root / MANIFEST).exists():
        raise ValueError(f"{root}: is finished already, expected a new or an interrupted one.")
    root.mkdir(parents=True, exist_ok=True)
    _check_plan(root, source, plan)
    shards = range(-(-source.num_episodes // plan.episodes_per_shard))
    damage: list[dict[str, Any]] = []
    pool, count = concurrent.futures.ThreadPoolExecutor(max(workers, 1)), _Count(source.num_episodes, progress)
    try:
        for found in pool.map(lambda number: _write_shard(source, root, plan, count, number), shards):
            damage += found
            _check_budget(source, root, plan, damage)
    finally:
        pool.shutdown(cancel_futures=True)
    arrays, texts = _tables(source, damage)
    store.save(root / "columns", source.digest, arrays, {"texts": texts})
    _write_json(root / MANIFEST, _manifest(source, plan, damage))
    return root


class _Count:
    """Counts what threads have done, and shows it."""

    def __init__(self, total: int, progress: Callable[[int, int], None]):
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self._done += number
            self._progress(self._done, self._total)


def _check_plan(root: pathlib.Path, source: EpisodeSource, plan: Plan) -> None:
    """Refuses a directory that was begun otherwise; the budget may change."""
    path, facts = root / PLAN, {"source": source.digest, **dataclasses.asdict(plan)}
    facts = json.loads(json.dumps({name: value for name, value in facts.items() if name != "budget"}))
    if path.exists() and json.loads(path.read_text()) != facts:
        raise ValueError(f"{root}: was begun from another dataset or plan. Use a new directory, or remove this one.")
    _write_json(path, facts)


def _check_budget(source: EpisodeSource, root: pathlib.Path, plan: Plan, damage: Sequence[dict[str, Any]]) -> None:
    """Stops where more pictures are unreadable than the budget allows; those of quarantined frames do not count."""
    first_row = dict(zip(source.episode_ids.tolist(), source.episode_starts.tolist()))
    fresh = [item for item in damage if source.valid[first_row[item["episode"]] + item["frame"]]]
    allowed = plan.budget * source.num_frames * len(source.cameras)
    if len(fresh) > allowed:
        first = f"episode {fresh[0]['episode']}, frame {fresh[0]['frame']}: {fresh[0]['reason']}"
        raise ValueError(
            f"{root}: {len(fresh)} unreadable pictures, budget {allowed:.0f}. The first: {first}. Run `molmoact2 data "
            "check DATASET --quarantine FILE` and repack with the same file, or raise the budget."
        )


def _write_json(path: pathlib.Path, value: Any) -> None:
    unfinished = path.with_name(f"{path.name}.incomplete")
    unfinished.write_text(json.dumps(value, indent=1))
    unfinished.replace(path)


def shard_name(number: int) -> str:
    """Returns the file that holds the pictures of the episodes of one shard."""
    return f"pictures-{number:05}.array_record"


def _write_shard(
    source: EpisodeSource, root: pathlib.Path, plan: Plan, count: _Count, number: int
) -> list[dict[str, Any]]:
    """Writes the pictures of one shard's episodes, unless that was done. Returns what was unreadable."""
    first = number * plan.episodes_per_shard
    episodes = range(first, min(first + plan.episodes_per_shard, source.num_episodes))
    path, report = root / shard_name(number), root / f"{shard_name(number)}.json"
    if path.exists() and report.exists():
        count.add(len(episodes))
        return json.loads(report.read_text())
    own, damage = copy.deepcopy(source), []  # threads would wait for each other's decoders

    def records() -> Iterator[bytes]:
        for episode in episodes:
            for camera, record, error in _records(own, episode, plan):
                yield record
                if error is not None:
                    damage.append(_note(error, camera))
            count.add(1)

    fresh = root / f"{shard_name(number)}.fresh"
    archive.write(fresh, records(), compressed=False)
    own.close()
    _write_json(report, damage)
    fresh.replace(path)
    return damage


def _note(error: SampleError, camera: str) -> dict[str, Any]:
    """Logs an error and returns its entry in the manifest; `camera` is "" for an instruction."""
    _log.warning("%s", error)
    return {"episode": error.episode, "frame": error.frame, "camera": camera, "reason": error.reason}


def _tasks(source: EpisodeSource, episode: int, frame: int, damage: list[dict[str, Any]]) -> tuple[str, ...]:
    try:
        return source.tasks(episode, frame)
    except SampleError as error:
        damage.append(_note(error, ""))
        return ()


def _records(source: EpisodeSource, episode: int, plan: Plan) -> Iterator[tuple[str, bytes, SampleError | None]]:
    """Yields (camera, record, error), all cameras of a frame, then the next; an unreadable picture has no bytes."""
    present = source.cameras_of(episode)
    length = int(source.episode_lengths[episode])
    for start in range(0, length, _WINDOW):
        frames = range(start, min(start + _WINDOW, length))
        window = {camera: _window(source, episode, frames, camera, plan) for camera in present}
        for i in range(len(frames)):
            for camera in source.cameras:
                yield camera, *(window[camera][i] if camera in window else (b"", None))


def _window(
    source: EpisodeSource, episode: int, frames: Sequence[int], camera: str, plan: Plan
) -> list[tuple[bytes, SampleError | None]]:
    """Reads frames together, and one by one where that fails."""
    try:
        if plan.encoding == "stored" and (first := source.encoded(episode, frames[0], camera)) is not None:
            rest = [source.encoded(episode, frame, camera) or b"" for frame in frames[1:]]
            return [(record, None) for record in (first, *rest)]
        decoded = source.frames(episode, frames, [camera])[camera]
    except SampleError as error:
        if len(frames) == 1:
            return [(b"", error)]
        return [record for frame in frames for record in _window(source, episode, [frame], camera, plan)]
    return [(_encode(picture, plan), None) for picture in decoded]


def _encode(picture: np.ndarray, plan: Plan) -> bytes:
    if plan.size is not None and picture.shape[:2] != plan.size:
        picture = images.resize(picture, plan.size)
    if plan.encoding == "raw":
        return np.array(picture.shape[:2], "<u4").tobytes() + picture.tobytes()
    return pictures.encode_png(picture) if plan.encoding == "png" else pictures.encode_jpeg(picture, plan.quality)


def _tables(source: EpisodeSource, damage: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Everything of a source but the pictures. Adds unreadable instructions to `damage`."""
    texts: dict[str, int] = {}
    names = [name for name in source.column_shapes() if name not in ("state", "action")]
    arrays = {f"column:{name}": values for name, values in source.columns([*names, "state", "action"]).items()}
    rows = [(e, t) for e in range(source.num_episodes) for t in range(int(source.episode_lengths[e]))]
    tasks = [[texts.setdefault(text, len(texts)) for text in _tasks(source, e, t, damage)] for e, t in rows]
    width = max(map(len, tasks), default=0)
    arrays["tasks"] = np.array([ids + [-1] * (width - len(ids)) for ids in tasks], np.int32).reshape(len(rows), width)
    notes = [source.annotation(e) for e in range(source.num_episodes)]
    arrays["annotation"] = np.array([-1 if n is None else texts.setdefault(n, len(texts)) for n in notes], np.int32)
    arrays["same_task"] = np.array([source.same_task(e).min() for e in range(source.num_episodes)], np.int32)
    present = [[camera in source.cameras_of(e) for camera in source.cameras] for e in range(source.num_episodes)]
    arrays["present"] = np.array(present, bool)
    arrays |= {"length": source.episode_lengths, "ids": source.episode_ids}
    for camera in source.cameras:
        if rows and source.depth_codes(*rows[0], [camera]) is not None:
            arrays[f"depth:{camera}"] = np.array([source.depth_codes(e, t, [camera]) for e, t in rows], np.uint8)
    return arrays, list(texts)


def _manifest(source: EpisodeSource, plan: Plan, damage: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": source.name,
        "source": source.digest,
        "fps": source.fps,
        "cameras": source.cameras,
        "state_names": source.state_names,
        "action_names": source.action_names,
        "plan": dataclasses.asdict(plan),
        "damage": list(damage),
        "problems": [{"episode": p.episode, "reason": p.reason} for p in source.problems],
    }
