"""What the readers of all formats share: columns in a `Store`, episodes as slices of them, selection and quarantine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from molmoact2_jax.data import open_files, oxe, pictures, quarantine, store
from molmoact2_jax.data.source import EpisodeSource, SampleError


def silent(done: int, total: int) -> None:
    """Shows no progress."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a dataset is read.

    Attributes:
      name: of the source.
      digest: of its content, before selection.
      fps: 1/s.
      cameras: names.
      state, action: fields of the columns of those names.
      lengths: i64[E], rows of each stored episode.
      ids: i64[E], the dataset's own numbers of them.
      damage: {position: reason} of stored episodes that cannot be read.
      trim: rows that do not count at the start and end of an episode.
      usual_name: what quarantine files call the dataset where nobody chose a name.
    """

    name: str
    digest: str
    fps: float
    cameras: tuple[str, ...]
    state: tuple[oxe.Field, ...]
    action: tuple[oxe.Field, ...]
    lengths: np.ndarray
    ids: np.ndarray
    damage: Mapping[int, str]
    trim: tuple[int, int] = (0, 0)
    usual_name: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a caller may choose when opening a dataset of any format.

    Attributes:
      name: of the source, "" for the format's default.
      also: another name by which the quarantine file may call it, such as that default.
      episodes: the dataset's own numbers of the episodes to read, in this order; None for all.
      quarantine: path of a quarantine file, or None.
      cache: directory for indices, or None for beside the data (in the home if that is read-only).
      files: what is kept open; sources of one run share it. None for a set of the source's own.
    """

    name: str = ""
    also: str = ""
    episodes: tuple[int, ...] | None = None
    quarantine: str | os.PathLike[str] | None = None
    cache: str | os.PathLike[str] | None = None
    files: open_files.OpenFiles | None = None


class TableSource(EpisodeSource):
    """An `EpisodeSource` over columns in a store; a format adds pictures and texts.

    `rows[e]` is the first row in the store of episode `e`, before trimming.
    """

    def __init__(self, layout: Layout, columns: store.Store, options: Options):
        chosen = _choose(layout, options)
        self.name, self.fps, self.cameras = layout.name, layout.fps, layout.cameras
        self.digest = layout.digest if options.episodes is None else _selected(layout.digest, options.episodes)
        self.state_names = tuple(name for field in layout.state for name in field.names)
        self.action_names = tuple(name for field in layout.action for name in field.names)
        self.stored = chosen
        self.rows = (np.cumsum(layout.lengths) - layout.lengths)[chosen]
        self._stored_lengths = layout.lengths[chosen]
        self.episode_ids = layout.ids[chosen]
        self.episode_lengths = np.maximum(self._stored_lengths - sum(layout.trim), 0)
        self.episode_starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        entries = quarantine.read(options.quarantine) if options.quarantine is not None else ()
        entries = tuple(dataclasses.replace(e, dataset=self.name) if e.dataset == options.also else e for e in entries)
        known = {entry.episode for entry in entries if entry.dataset == self.name and entry.frame is None}
        damage = [(int(layout.ids[i]), layout.damage[int(i)]) for i in chosen if int(i) in layout.damage]
        fresh = [(number, reason) for number, reason in damage if number not in known]
        self.problems = tuple(SampleError(self.name, number, None, reason) for number, reason in fresh)
        self.valid = quarantine.valid(entries, self.name, self.episode_ids, self.episode_lengths)
        self.valid &= quarantine.valid(entries, layout.usual_name, self.episode_ids, self.episode_lengths)
        self._columns, self._trim = columns, layout.trim
        self._files = options.files or open_files.OpenFiles()
        self._fields = {"state": layout.state, "action": layout.action}

    def column_shapes(self) -> dict[str, tuple[int, ...]]:
        stored = (name for name in self._columns.names() if name.startswith("column:"))
        shapes = {name.removeprefix("column:"): self._columns[name].shape[1:] for name in stored}
        joined = {name: (sum(len(field.names) for field in fields),) for name, fields in self._fields.items()}
        return {"timestamp": (), **shapes, **joined}

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        episodes = range(self.num_episodes)
        return {name: np.concatenate([self.column(name, episode) for episode in episodes]) for name in names}

    def column(self, name: str, episode: int) -> np.ndarray:
        length = int(self._stored_lengths[episode])
        first, last = self._trim
        return self._untrimmed(name, int(self.rows[episode]), length)[first : max(length - last, first)]

    def stack(self, episode: int, frames: Sequence[int], camera: str, encoded: Sequence[bytes]) -> np.ndarray:
        """Decodes pictures of one size. Returns u8[len(frames), H, W, 3].

        Raises:
          SampleError: one is damaged, or of another size than the first.
        """
        decoded: list[np.ndarray] = []
        for frame, data in zip(frames, encoded):
            try:
                decoded.append(pictures.decode(data))
            except ValueError as error:
                raise self.error(episode, frame, f"{camera}: {error}") from error
            if decoded[-1].shape != decoded[0].shape:
                sizes = f"{decoded[-1].shape[:2]} pixels beside {decoded[0].shape[:2]}"
                raise self.error(episode, frame, f"{camera}: {sizes}")
        return np.stack(decoded)

    def texts(self, episode: int, frame: int, found: Iterable[str]) -> tuple[str, ...]:
        """Returns instructions without blank and repeated ones.

        Raises:
          SampleError: one has bytes that are not UTF-8 (read as surrogates).
        """
        distinct = dict.fromkeys(text for text in found if text.strip())
        for text in distinct:
            if not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text):
                raise self.error(episode, frame, f"the instruction is not UTF-8: {text!r}")
        return tuple(distinct)

    def _untrimmed(self, name: str, row: int, length: int) -> np.ndarray:
        rows = slice(row, row + length)
        if name in self._fields:
            parts = [field.read(self._columns[f"column:{field.key}"][rows]) for field in self._fields[name]]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if f"column:{name}" in self._columns:
            return self._columns[f"column:{name}"][rows]
        if name == "timestamp":
            return np.arange(-self._trim[0], length - self._trim[0]) / self.fps
        raise ValueError(f"{self.name}: no column {name!r}, expected one of {sorted(self.column_shapes())}.")


def _choose(layout: Layout, options: Options) -> np.ndarray:
    """Returns the positions of the selected episodes among the stored ones."""
    if options.episodes is None:
        return np.arange(len(layout.lengths))
    positions = {int(number): i for i, number in enumerate(layout.ids)}
    absent = [number for number in options.episodes if number not in positions]
    if absent:
        raise ValueError(
            f"{layout.name}: no episodes {absent[:10]}, expected numbers among the {len(positions)} of the dataset."
        )
    return np.array([positions[number] for number in options.episodes], np.int64)


def _selected(digest: str, episodes: Sequence[int]) -> str:
    return hashlib.sha256(f"{digest}@{','.join(map(str, episodes))}".encode()).hexdigest()
