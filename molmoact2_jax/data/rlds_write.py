"""Writes RLDS datasets that TFDS, and `rlds`, read: TFRecord or ArrayRecord shards with their metadata."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from molmoact2_jax.data import archive, tfrecord

FORMATS = ("array_record", "tfrecord")


class Writer:
    """Appends episodes to one split; the dataset exists once the writer is closed without an error.

    with Writer(directory, "my_robot", features) as writer:
        writer.add(steps, metadata)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        features: Any,
        *,
        file_format: str = "array_record",
        split: str = "train",
        episodes_per_shard: int = 64,
    ):
        """Starts a dataset.

        Args:
          directory: becomes the version directory (`features.json` and shards).
          name: of the dataset, part of the files' names.
          features: `tfds.features.FeaturesDict` with a `Dataset` called `steps`.
          file_format: "array_record" or "tfrecord".
          split: of the dataset.
          episodes_per_shard: records in a file.

        Raises:
          ValueError: unknown format, or a directory that holds a dataset already.
        """
        if file_format not in FORMATS:
            raise ValueError(f"rlds_write: file_format {file_format!r}, expected one of {FORMATS}.")
        self.directory = pathlib.Path(directory)
        if (self.directory / "features.json").exists():
            raise ValueError(f"{self.directory}: there is a dataset already, expected a new directory.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name, self.features, self.file_format, self.split = name, features, file_format, split
        self._episodes_per_shard = episodes_per_shard
        self._pending: list[bytes] = []
        self._shards: list[tuple[pathlib.Path, int, int]] = []

    def add(self, steps: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any] | None = None) -> None:
        """Appends an episode.

        Args:
          steps: one nested mapping per step; pictures as encoded bytes (`pictures.encode_png`), text as str.
          metadata: the other features, e.g. {"episode_metadata": {...}}.

        Raises:
          ValueError: what is given is not what the features say.
        """
        example = {"steps": list(steps), **(metadata or {})}
        try:
            self._pending.append(self.features.serialize_example(self.features.encode_example(example)))
        except Exception as error:  # TFDS raises many kinds; pictures that are arrays make it look for TensorFlow
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.directory}: TFDS cannot encode the episode: {reason}. Give every feature and no other, "
                "pictures as encoded bytes (`pictures.encode_png`)."
            ) from error
        if len(self._pending) == self._episodes_per_shard:
            self._flush()

    def close(self) -> None:
        """Writes the last shard, gives shards their names, then the metadata.

        Raises:
          ValueError: no episode was added.
        """
        if self._pending:
            self._flush()
        if not self._shards:
            raise ValueError(f"{self.directory}: no episodes, expected at least one. Add one before closing.")
        for i, (path, _, _) in enumerate(self._shards):
            path.rename(
                self.directory / f"{self.name}-{self.split}.{self.file_format}-{i:05}-of-{len(self._shards):05}"
            )
        (self.directory / "dataset_info.json").write_text(json.dumps(self._info(), indent=2))
        self.features.save_config(self.directory)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None:
            self.close()

    def _flush(self) -> None:
        path = self.directory / f"{self.split}-{len(self._shards):05}.incomplete"
        if self.file_format == "tfrecord":
            tfrecord.write(path, self._pending)
        else:
            archive.write(path, self._pending)
        self._shards.append((path, len(self._pending), sum(map(len, self._pending))))
        self._pending = []

    def _info(self) -> dict[str, Any]:
        split = {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": self.split,
            "numBytes": str(sum(size for _, _, size in self._shards)),
            "shardLengths": [str(count) for _, count, _ in self._shards],
        }
        return {"fileFormat": self.file_format, "name": self.name, "splits": [split], "version": "1.0.0"}
