"""LeRobot datasets v3.0 and v2.1: parquet columns, frames from mp4 or embedded pictures, tasks, depth companions."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from molmoact2_jax.data import lerobot_index, lerobot_meta, oxe, store, table
from molmoact2_jax.data.source import SampleError

DEPTH_COLUMNS = ("depth_buffer_codes", "buffer_codes")
NUM_DEPTH_CODES, NUM_DEPTH_CELLS = 128, 100


class LeRobotSource(table.TableSource):
    """A LeRobot dataset read by an embodiment tag."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        tag: oxe.Tag,
        options: table.Options = table.Options(),  # noqa: B008 (frozen)
        *,
        depth: Mapping[str, str | os.PathLike[str]] | None = None,
        workers: int = 4,
        progress: Callable[[int, int], None] = table.silent,
    ):
        """Opens a dataset.

        Args:
          directory: root, with `meta/info.json`.
          tag: columns, cameras and joint names; `oxe.TAGS` or one's own.
          options: name (default: the root's), selection, quarantine, cache.
          depth: {camera, or the last part of its name: root of its depth companion}; the key "" is for a companion
            that serves any camera.
          workers: threads that read parquet files at the first opening.
          progress: called with (episodes read, all episodes).

        Raises:
          ValueError: no such dataset, column or camera, or not one episode can be read.
        """
        meta = lerobot_meta.read(pathlib.Path(directory))
        columns = lerobot_index.open_store(meta, options.cache, workers, progress)
        cameras = tag.cameras or meta.cameras
        layout = table.Layout(
            name=options.name or meta.root.resolve().name,
            digest=store.digest(meta.files(), meta.root, "lerobot", tag),
            fps=meta.fps,
            cameras=cameras,
            state=tuple(_field(meta, key, tag.aliases) for key in tag.state_keys),
            action=(_field(meta, tag.action_key, tag.aliases),),
            lengths=columns["length"],
            ids=meta.ids,
            damage={int(i): reason for i, reason in columns.meta["damage"].items()},
            usual_name=meta.root.resolve().name,
        )
        super().__init__(layout, columns, options)
        self.tag, self._meta = tag, meta
        self._stored_as = {camera: lerobot_meta.stored_camera(meta, camera, tag.aliases) for camera in cameras}
        self._annotations = lerobot_meta.annotated_tasks(meta.root)
        self._task_of = self._tasks_of_episodes()
        self._depth = {self._named(camera): self._companion(path, options) for camera, path in (depth or {}).items()}

    def tasks(self, episode: int, frame: int) -> tuple[str, ...]:
        self.require(episode, [frame])
        number = int(self.column("task_index", episode)[frame])
        if number not in self._meta.tasks:
            raise self.error(episode, frame, f"task_index {number} is not among the {len(self._meta.tasks)} tasks")
        return self.texts(episode, frame, [self._meta.tasks[number]])

    def annotation(self, episode: int) -> str | None:
        text = self._annotations.get(int(self.episode_ids[episode]), "")
        return next(iter(self.texts(episode, 0, [text])), None)

    def same_task(self, episode: int) -> np.ndarray:
        return np.flatnonzero(self._task_of == self._task_of[episode])

    def depth_codes(self, episode: int, frame: int, cameras: Sequence[str]) -> np.ndarray | None:
        self.require(episode, [frame])
        camera = next((camera for camera in (*cameras, "") if camera in self._depth), None)
        if camera is None:
            return None
        companion, column = self._depth[camera]
        try:
            companion.require(episode, [frame])
        except SampleError as error:
            raise self.error(episode, frame, f"{companion.name}: {error.reason}") from error
        codes = np.asarray(companion.column(column, episode)[frame], np.int64)
        if codes.shape != (NUM_DEPTH_CELLS,) or codes.min() < 0 or codes.max() >= NUM_DEPTH_CODES:
            given = f"{list(codes.shape)} codes from {codes.min()} to {codes.max()}"
            reason = f"{companion.name}: {given}, expected {NUM_DEPTH_CELLS} in [0, {NUM_DEPTH_CODES})"
            raise self.error(episode, frame, reason)
        return codes

    def frames(self, episode: int, frames: Sequence[int], cameras: Sequence[str]) -> dict[str, np.ndarray]:
        self.require(episode, frames)
        unknown = [camera for camera in cameras if camera not in self._stored_as]
        if unknown:
            raise self.error(episode, frames[0], f"no cameras {unknown}, expected some of {self.cameras}")
        if len(cameras) == 1:
            return {cameras[0]: self._read(episode, frames, cameras[0])}
        read = self._files.threads().map(lambda camera: self._read(episode, frames, camera), cameras)
        return dict(zip(cameras, read))

    def encoded(self, episode: int, frame: int, camera: str) -> bytes | None:
        self.require(episode, [frame])
        if self._stored_as[camera] in self._meta.clips:
            return None
        stored = int(self.stored[episode])
        path = self._meta.root / self._meta.data[stored]
        try:
            return self._files.groups.picture(
                str(path), self._stored_as[camera], int(self._columns["first"][stored]) + frame
            )
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self.error(episode, frame, f"{camera}: {path}: {error}") from error

    def close(self) -> None:
        self._files.close()
        for companion, _ in self._depth.values():
            companion.close()

    def _read(self, episode: int, frames: Sequence[int], camera: str) -> np.ndarray:
        key = self._stored_as[camera]
        if key not in self._meta.clips:
            return self.stack(
                episode, frames, camera, [self.encoded(episode, frame, camera) or b"" for frame in frames]
            )
        paths, starts = self._meta.clips[key]
        stored = int(self.stored[episode])
        times = starts[stored] + self.column("timestamp", episode)[np.asarray(frames)].astype(np.float64)
        try:
            return self._files.decoders.read(str(self._meta.root / paths[stored]), times.tolist())
        except ValueError as error:
            for frame in frames if len(frames) > 1 else ():
                self._read(episode, [frame], camera)  # raises for the frame that is at fault
            raise self.error(episode, int(frames[0]), f"{camera}: {error}") from error

    def _tasks_of_episodes(self) -> np.ndarray:
        """Task index of each episode: by `meta/task_to_episode.parquet`, or else that of its first frame."""
        listed = lerobot_meta.task_episodes(self._meta.root)
        firsts = (self.column("task_index", episode)[:1].tolist() for episode in range(self.num_episodes))
        pairs = zip(self.episode_ids.tolist(), firsts)
        return np.array([listed.get(number, first[0] if first else -1) for number, first in pairs], np.int64)

    def _named(self, camera: str) -> str:
        """Returns the camera of a companion by its whole name; "" stays."""
        known = {name.rpartition(".")[2]: name for name in self.cameras} | {name: name for name in ("", *self.cameras)}
        if camera not in known:
            raise ValueError(
                f"{self._meta.root}: depth of {camera!r}, expected one of {list(known)}, '' for any camera."
            )
        return known[camera]

    def _companion(self, path: str | os.PathLike[str], options: table.Options) -> tuple[LeRobotSource, str]:
        """Opens a depth companion: the same rows, with columns of codes (`io.md` 6.2)."""
        chosen = dataclasses.replace(options, name="", quarantine=None)
        companion = LeRobotSource(
            path, oxe.Tag("depth", 1, "", "", state_keys=(), action_key=self.tag.action_key), chosen
        )
        column = next((name for name in DEPTH_COLUMNS if name in companion.column_shapes()), None)
        if column is None:
            raise ValueError(
                f"{path}: no column of {DEPTH_COLUMNS}, expected a depth companion (`data depth` makes one)."
            )
        readable = (companion.episode_lengths > 0) & (self.episode_lengths > 0)
        if not np.array_equal(companion.episode_lengths[readable], self.episode_lengths[readable]):
            raise ValueError(f"{path}: other episodes than {self._meta.root}. Annotate the dataset again.")
        return companion, column


def _field(meta: lerobot_meta.Meta, key: str, aliases: str) -> oxe.Field:
    return oxe.Field(key, lerobot_meta.canonical(meta.channels(key), aliases), "")
