"""RLDS datasets (TFDS directories of TFRecord or ArrayRecord shards) with random access to every frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import google_crc32c
import numpy as np

from molmoact2_jax.data import oxe, rlds_features, rlds_index, store, table


class RLDSSource(table.TableSource):
    """A TFDS directory read by a row of the OXE table.

    The first opening reads every record once, checks it, and keeps an index (`store.place`); from then on a frame of a
    TFRecord dataset costs one read of the picture's own bytes, checked against the index. ArrayRecord files are
    compressed, so there a frame costs its episode; the last ones are kept, and `repack` removes the cost.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        row: oxe.Row,
        options: table.Options = table.Options(),  # noqa: B008 (frozen)
        *,
        split: str = "train",
        workers: int = 4,
        progress: Callable[[int, int], None] = table.silent,
    ):
        """Opens a dataset.

        Args:
          directory: TFDS directory, or the one above its only version.
          row: what the features mean; `oxe.ROWS` or one's own.
          options: name, selection, quarantine, cache.
          split: of the dataset.
          workers: threads that build the index.
          progress: called with (shards indexed, all shards).

        Raises:
          ValueError: no such dataset, split or features, or every episode is damaged.
        """
        dataset = rlds_features.describe(directory, split)
        rlds_features.check(dataset, row)
        self._index = rlds_index.open_store(dataset, row, options.cache, workers, progress)
        metadata = [dataset.root / "features.json", dataset.root / "dataset_info.json"]
        lengths = self._index["length"]
        layout = table.Layout(
            name=options.name or row.name,
            digest=store.digest([*metadata, *dataset.paths], dataset.root, "rlds", split, row),
            fps=row.fps,
            cameras=tuple(camera.name for camera in row.cameras),
            state=row.state,
            action=row.action,
            lengths=lengths,
            ids=np.arange(len(lengths)),
            damage={int(i): reason for i, reason in self._index.meta["damage"].items()},
            trim=(row.drop_first, row.drop_last),
            usual_name=row.name,
        )
        super().__init__(layout, self._index, options)
        self.row = row
        self._texts: list[str] = self._index.meta["texts"]
        self._paths = [os.fspath(path) for path in dataset.paths]
        self._shards, self._records = self._index["shard"][self.stored], self._index["record"][self.stored]
        self._compressed = dataset.array_record

    def tasks(self, episode: int, frame: int) -> tuple[str, ...]:
        self.require(episode, [frame])
        at = int(self.rows[episode]) + self._trim[0] + frame
        return self.texts(episode, frame, (self._texts[self._index[f"text:{key}"][at]] for key in self.row.language))

    def cameras_of(self, episode: int) -> tuple[str, ...]:
        flags = {camera.name for camera in self.row.cameras if camera.present}
        stored = self.stored[episode]
        return tuple(name for name in self.cameras if name not in flags or self._index[f"present:{name}"][stored])

    def frames(self, episode: int, frames: Sequence[int], cameras: Sequence[str]) -> dict[str, np.ndarray]:
        self.require(episode, frames)
        encoded = {camera: [self.encoded(episode, frame, camera) for frame in frames] for camera in cameras}
        return {camera: self.stack(episode, frames, camera, data) for camera, data in encoded.items()}

    def encoded(self, episode: int, frame: int, camera: str) -> bytes:
        self.require(episode, [frame])
        if camera not in self.cameras_of(episode):
            raise self.error(episode, frame, f"no camera {camera!r}, expected one of {self.cameras_of(episode)}")
        at = int(self.rows[episode]) + self._trim[0] + frame
        offset, length, crc = (self._index[f"{name}:{camera}"][at].item() for name in ("offset", "bytes", "crc"))
        path = self._paths[self._shards[episode]]
        try:
            if self._compressed:
                record = self._files.archive.read(path, int(self._records[episode, 0]))
                data = record[offset : offset + length]
            else:
                data = os.pread(self._files.records.get(path).fileno(), length, offset)
        except (OSError, ValueError) as error:
            raise self.error(episode, frame, f"{camera}: {path}: {error}") from error
        if google_crc32c.value(data) != crc:
            raise self.error(episode, frame, f"{camera}: {path} has changed at byte {offset} since it was indexed")
        return data

    def close(self) -> None:
        self._files.close()
