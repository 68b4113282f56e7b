"""Annotates LeRobot datasets with depth: codes, buffers and masks beside every frame (`io.md` 6.2, `training.md` 4.9).

Tables appear in the companion one by one, each whole: a run that was cut short goes on with the next, and several runs
may share the tables.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import depth, depth_companion, depth_maps, lerobot_meta, table
from molmoact2_jax.data.depth_companion import Columns, Settings
from molmoact2_jax.data.source import EpisodeSource, SampleError

MISSING = -1  # the code of frames that cannot be read; readers refuse it
FRAMES = 32  # maps and pictures held at once

Encode = Callable[[np.ndarray], np.ndarray]  # f32[B, 320, 320, 1] -> int[B, 100]


@dataclasses.dataclass(frozen=True)
class Annotator:
    """What codes are made from.

    Attributes:
      source: the dataset, all its episodes, for the pictures of `settings.camera`.
      meta: its metadata.
      maps: where depth maps come from.
      encode: the codec.
      settings: equal in every run.
    """

    source: EpisodeSource
    meta: lerobot_meta.Meta
    maps: depth_maps.Maps
    encode: Encode
    settings: Settings

    def episode(self, position: int) -> tuple[Columns, int]:
        """Returns the columns of an episode, and how many of its pictures cannot be read."""
        length = int(self.source.episode_lengths[position])
        spans = [range(start, min(start + FRAMES, length)) for start in range(0, length, FRAMES)]
        codes = np.concatenate([self._codes(position, span) for span in spans])
        unread: list[int] = []
        pictures = (picture for span in spans for picture in self._pictures(position, span, unread))
        return follow(pictures, codes), len(unread)

    def _codes(self, position: int, span: Sequence[int]) -> np.ndarray:
        number = int(self.source.episode_ids[position])
        maps = self.maps(number, span)
        present = [i for i, values in enumerate(maps) if values is not None]
        codes = np.full((len(span), depth.NUM_CELLS), MISSING, np.int16)
        if present:
            codes[present] = self.encode(np.stack([self._prepared(number, span[i], maps[i]) for i in present]))
        return codes

    def _prepared(self, episode: int, frame: int, values: np.ndarray | None) -> np.ndarray:
        assert values is not None
        try:
            return depth_maps.prepare(values, self.settings.kind)
        except ValueError as error:
            raise ValueError(f"episode {episode}, frame {frame}: {error}") from error

    def _pictures(self, position: int, span: Sequence[int], unread: list[int]) -> Iterator[np.ndarray | None]:
        """Yields pictures, None for one that cannot be read; its frame is added to `unread`."""
        camera = self.settings.camera
        try:
            yield from self.source.frames(position, span, [camera])[camera]
        except SampleError:
            if len(span) == 1:
                unread.append(span[0])
                yield None
                return
            for frame in span:
                yield from self._pictures(position, [frame], unread)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
      files: tables written.
      kept: tables that were there already.
      frames: frames annotated.
      unread: frames whose picture cannot be read; their cells count as changed.
      missing: frames without a map, and of episodes that cannot be read; they have no codes.
      used: share of the codes that occur among these frames, None without any.
      changed: share of cells that changed, first frames apart, None without others.
    """

    files: int
    kept: int
    frames: int
    unread: int
    missing: int
    used: float | None
    changed: float | None


def annotate(
    annotator: Annotator,
    directory: pathlib.Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = table.silent,
) -> Report:
    """Writes the companion of a dataset, or what is missing of it.

    Args:
      annotator: what to annotate, and with what.
      directory: of the companion.
      shard: (index, count): this run takes every count-th table, from the index-th.
      progress: called with (frames done, all frames of the shard).

    Raises:
      ValueError: the companion was begun with other settings; a map is missing or cannot be prepared.
    """
    meta = annotator.meta
    depth_companion.begin(meta, directory, annotator.settings)
    members = {path: [i for i, of in enumerate(meta.data) if of == path] for path in sorted(set(meta.data))}
    members = dict(list(members.items())[shard[0] :: shard[1]])
    tally = _Tally(sum(int(meta.lengths[inside].sum()) for inside in members.values()), progress)
    for path, inside in members.items():
        if (directory / path).exists():
            tally.keep(int(meta.lengths[inside].sum()))
            continue
        rows = pq.read_table(meta.root / path)
        columns = _columns(annotator, rows, inside, tally)
        depth_companion.write(depth_companion.joined(rows, columns), directory / path)
        tally.files += 1
    return tally.report()


def follow(pictures: Iterable[np.ndarray | None], codes: np.ndarray) -> Columns:
    """Carries the codes of an episode through its pictures.

    Args:
      pictures: u8[H, W, 3] of each frame in order, None where one cannot be read.
      codes: i16[T, 100], `MISSING` where a frame has none. Such a frame, one without a picture, and the next after
        either count as changed everywhere.
    """
    mask = np.ones(codes.shape, bool)
    buffer = codes.copy()
    previous: np.ndarray | None = None
    for frame, picture in enumerate(pictures):
        if codes[frame, 0] == MISSING:
            picture = None
        if previous is not None and picture is not None:
            mask[frame] = depth.annotation_mask(previous, picture)
        buffer[frame] = depth.update_buffer(buffer[frame - 1] if frame else None, codes[frame], mask[frame])
        previous = picture
    return Columns(codes, buffer, mask)


def _columns(annotator: Annotator, rows: pa.Table, episodes: Sequence[int], tally: _Tally) -> Columns:
    """Computes the columns of one table."""
    numbers = rows["episode_index"].to_numpy()
    shape = (len(numbers), depth.NUM_CELLS)
    out = Columns(np.full(shape, MISSING, np.int16), np.full(shape, MISSING, np.int16), np.ones(shape, bool))
    for position in episodes:
        where = np.flatnonzero(numbers == annotator.meta.ids[position])
        if not len(where) or annotator.source.episode_lengths[position] != len(where):
            tally.skip(len(where))
            continue
        found, unread = annotator.episode(position)
        for name in ("codes", "buffer", "mask"):
            getattr(out, name)[where] = getattr(found, name)
        tally.add(found, unread)
    return out


class _Tally:
    """Counts over a run, and tells how far it is."""

    def __init__(self, total: int, progress: Callable[[int, int], None]):
        self.files = self._kept = self._frames = self._unread = self._missing = self._done = 0
        self._total, self._progress = total, progress
        self._codes = np.zeros(depth.NUM_CODES, np.int64)
        self._rates: list[np.ndarray] = [np.zeros(0)]

    def keep(self, frames: int) -> None:
        self._kept += 1
        self._advance(frames)

    def skip(self, frames: int) -> None:
        self._missing += frames
        self._advance(frames)

    def add(self, columns: Columns, unread: int) -> None:
        self._unread += unread
        there = columns.codes[columns.codes != MISSING]
        coded = len(there) // depth.NUM_CELLS
        self._frames += coded
        self._missing += len(columns.codes) - coded
        self._codes += np.bincount(there, minlength=depth.NUM_CODES)
        self._rates.append(columns.mask[1:].mean(axis=1))
        self._advance(len(columns.codes))

    def report(self) -> Report:
        rates = np.concatenate(self._rates)
        changed = float(rates.mean()) if len(rates) else None
        used = float((self._codes > 0).mean()) if self._frames else None
        return Report(self.files, self._kept, self._frames, self._unread, self._missing, used, changed)

    def _advance(self, frames: int) -> None:
        self._done += frames
        self._progress(self._done, self._total)
