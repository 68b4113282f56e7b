"""Episodes held in arrays: for tests, toys, and data that never was a file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from molmoact2_jax.data import source


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recording of L frames.

    Attributes:
      state: f32[L, D], robot units.
      action: f32[L, C], robot units.
      pictures: {camera: u8[L, H, W, 3]}.
      task: instruction.
      annotation: a richer instruction, or None.
      depth: {camera: i64[L, 100]}, depth codes.
    """

    state: np.ndarray
    action: np.ndarray
    pictures: Mapping[str, np.ndarray]
    task: str
    annotation: str | None = None
    depth: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class MemorySource(source.EpisodeSource):
    """A robot dataset made of arrays. Cameras are those of the first episode, in its order."""

    def __init__(self, name: str, episodes: Sequence[Episode], fps: float = 10.0):
        lengths = [len(e.action) for e in episodes]
        self.name = name
        self.fps = fps
        self.cameras = tuple(episodes[0].pictures)
        self.state_names = tuple(f"state_{i}" for i in range(episodes[0].state.shape[1]))
        self.action_names = tuple(f"action_{i}" for i in range(episodes[0].action.shape[1]))
        self.episode_ids = np.arange(len(episodes))
        self.episode_lengths = np.array(lengths, np.int64)
        self.episode_starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        self.valid = np.ones(sum(lengths), bool)
        self.digest = _digest(episodes)
        self._episodes = tuple(episodes)
        self._columns = {
            "state": np.concatenate([e.state for e in episodes]).astype(np.float32),
            "action": np.concatenate([e.action for e in episodes]).astype(np.float32),
            "timestamp": np.concatenate([np.arange(n) / fps for n in lengths]).astype(np.float32),
        }

    def column_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: values.shape[1:] for name, values in self._columns.items()}

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._columns[name] for name in names}

    def column(self, name: str, episode: int) -> np.ndarray:
        start = self.episode_starts[episode]
        return self._columns[name][start : start + self.episode_lengths[episode]]

    def tasks(self, episode: int, frame: int) -> tuple[str, ...]:
        task = self._episodes[episode].task
        return (task,) if task.strip() else ()

    def annotation(self, episode: int) -> str | None:
        return self._episodes[episode].annotation

    def same_task(self, episode: int) -> np.ndarray:
        task = self._episodes[episode].task
        return np.array([i for i, e in enumerate(self._episodes) if e.task == task], np.int64)

    def cameras_of(self, episode: int) -> tuple[str, ...]:
        return tuple(camera for camera in self.cameras if camera in self._episodes[episode].pictures)

    def depth_codes(self, episode: int, frame: int, cameras: Sequence[str]) -> np.ndarray | None:
        found = self._episodes[episode].depth
        return next((found[camera][frame].astype(np.int64) for camera in cameras if camera in found), None)

    def frames(self, episode: int, frames: Sequence[int], cameras: Sequence[str]) -> dict[str, np.ndarray]:
        return {camera: self._episodes[episode].pictures[camera][list(frames)] for camera in cameras}

    def close(self) -> None:
        """Has nothing to close."""


def _digest(episodes: Sequence[Episode]) -> str:
    found = hashlib.sha256()
    for e in episodes:
        found.update(repr((e.task, e.annotation, sorted(e.pictures), sorted(e.depth))).encode())
        for array in (e.state, e.action, *e.pictures.values(), *e.depth.values()):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
