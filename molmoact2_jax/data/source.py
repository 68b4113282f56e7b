"""What a robot dataset is to the rest of the library, whatever its files are. `catalog.open_source` makes one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class SampleError(ValueError):
    """One sample cannot be used. Loaders catch it, quarantine the sample and go on with the others.

    Attributes:
      dataset: name of the source.
      episode: the dataset's own number of the episode.
      frame: frame inside the episode, None where the whole episode is meant.
      reason: what is wrong, with the file's name where a file is at fault.
    """

    def __init__(self, dataset: str, episode: int, frame: int | None, reason: str):
        self.dataset, self.episode, self.frame, self.reason = dataset, int(episode), frame, reason
        where = f"{dataset}, episode {episode}" + ("" if frame is None else f", frame {frame}")
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleError, (self.dataset, self.episode, self.frame, self.reason)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The actions that follow one frame.

    Attributes:
      actions: f32[A, C], robot units; past the episode's end its last action is repeated.
      valid: bool[A], false on repeated steps.
    """

    actions: np.ndarray
    valid: np.ndarray


class EpisodeSource(abc.ABC):
    """Episodes of one robot dataset: numeric columns in memory maps, pictures decoded when asked for.

    `episode` is a position in this source, 0..E-1 (a selection renumbers; `episode_ids` has the dataset's own
    numbers). `frame` counts from 0 inside the episode. Row `episode_starts[episode] + frame` of every column is that
    frame. Instances pickle without open files, and threads may share one.

    Attributes:
      name: what reports, quarantine files and digests call the dataset.
      digest: hex identity of the content: names and sizes of files, metadata, selection. Equal on every host.
      fps: frames per second.
      cameras: names, in the dataset's order.
      state_names: one word per channel of the column `state`.
      action_names: one word per channel of the column `action`.
      episode_ids: i64[E].
      episode_lengths: i64[E], frames.
      episode_starts: i64[E], row of the first frame of each episode.
      valid: bool[N], false on frames that the quarantine file names; nobody draws those.
      problems: episodes that could not be read when the dataset was opened, but for those that the quarantine file
        names; their length is 0.
    """

    name: str
    digest: str
    fps: float
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episode_ids: np.ndarray
    episode_lengths: np.ndarray
    episode_starts: np.ndarray
    valid: np.ndarray
    problems: tuple[SampleError, ...] = ()

    @property
    def num_episodes(self) -> int:
        return len(self.episode_lengths)

    @property
    def num_frames(self) -> int:
        return int(self.episode_lengths.sum())

    def locate(self, index: int) -> tuple[int, int]:
        """Returns (episode, frame) of a row of the columns."""
        episode = int(np.searchsorted(self.episode_starts, index, side="right")) - 1
        return episode, int(index - self.episode_starts[episode])

    @abc.abstractmethod
    def column_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of a row of each numeric column: `state`, `action`, `timestamp`, the dataset's own."""

    @abc.abstractmethod
    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns whole columns, [N, ...], in the dtype they are stored in, without touching a picture."""

    @abc.abstractmethod
    def column(self, name: str, episode: int) -> np.ndarray:
        """Returns the rows of one episode, [L, ...]."""

    @abc.abstractmethod
    def tasks(self, episode: int, frame: int) -> tuple[str, ...]:
        """Returns the instructions of a frame as stored, the first language field first, blank ones left out.

        Raises:
          SampleError: the text is not UTF-8.
        """

    @abc.abstractmethod
    def frames(self, episode: int, frames: Sequence[int], cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Decodes pictures, in the order asked for.

        Returns:
          {camera: u8[len(frames), H, W, 3]}, RGB.

        Raises:
          SampleError: a picture is missing, damaged, or of another size than its neighbours.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Closes files and decoders; they open again on the next read."""

    def encoded(self, episode: int, frame: int, camera: str) -> bytes | None:
        """Returns a picture's bytes as stored (JPEG, PNG), None where pictures are not stored one by one.

        Raises:
          SampleError: they cannot be read.
        """
        return None

    def task(self, episode: int, frame: int) -> str:
        """Returns the first instruction of a frame, or "" where it has none."""
        return next(iter(self.tasks(episode, frame)), "")

    def cameras_of(self, episode: int) -> tuple[str, ...]:
        """Returns the cameras that really filmed an episode (Bridge has 1 to 4)."""
        return self.cameras

    def annotation(self, episode: int) -> str | None:
        """Returns an episode's annotated instruction (LeRobot `meta/tasks_annotated.parquet`), None without one."""
        return None

    def same_task(self, episode: int) -> np.ndarray:
        """Returns the episodes (positions, i64[...]) that were recorded for the same task, this one included."""
        return np.array([episode], np.int64)

    def depth_codes(self, episode: int, frame: int, cameras: Sequence[str]) -> np.ndarray | None:
        """Returns i64[100], depth codes of the first of `cameras` that has a depth companion; None without one.

        Raises:
          SampleError: the companion's row has not 100 codes in [0, 128).
        """
        return None

    def state(self, episode: int, frame: int) -> np.ndarray:
        """Returns f32[D], proprioception in robot units.

        Raises:
          SampleError: a value is not finite.
        """
        self.require(episode, [frame])
        return self._finite("state", self.column("state", episode)[frame : frame + 1], episode, frame)[0]

    def chunk(self, episode: int, frame: int, horizon: int) -> Chunk:
        """Returns the actions of frames `frame` to `frame + horizon - 1`.

        Past the end of the episode the last action is repeated and marked invalid (`io.md` 8.2).

        Raises:
          SampleError: a value is not finite.
        """
        self.require(episode, [frame])
        length = int(self.episode_lengths[episode])
        steps = np.arange(frame, frame + horizon)
        actions = self.column("action", episode)[np.minimum(steps, length - 1)]
        return Chunk(self._finite("action", actions, episode, frame), steps < length)

    def require(self, episode: int, frames: Sequence[int]) -> None:
        """Checks that frames exist.

        Raises:
          SampleError: one lies outside the episode; says what damaged the episode, if anything did.
        """
        length, number = int(self.episode_lengths[episode]), int(self.episode_ids[episode])
        outside = [frame for frame in frames if not 0 <= frame < length]
        if outside:
            causes = [problem.reason for problem in self.problems if problem.episode == number]
            raise self.error(episode, int(outside[0]), "; ".join([f"the episode has {length} frames", *causes]))

    def error(self, episode: int, frame: int | None, reason: str) -> SampleError:
        """Returns the error that names a sample of this source."""
        return SampleError(self.name, int(self.episode_ids[episode]), frame, reason)

    def _finite(self, name: str, values: np.ndarray, episode: int, frame: int) -> np.ndarray:
        values = np.asarray(values, np.float32)
        if not np.isfinite(values).all():
            step, channel = np.argwhere(~np.isfinite(values))[0]
            raise self.error(
                episode, frame, f"{name} channel {channel} is {values[step, channel]} at {step} steps from the frame."
            )
        return values
