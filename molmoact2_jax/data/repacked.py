"""Reader of what `repack` writes: one ArrayRecord read and one decoding per picture, neighbours untouched."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from molmoact2_jax.data import oxe, repack, store, table


class RepackedSource(table.TableSource):
    """A repacked dataset. It names its source's episodes, instructions and problems."""

    def __init__(self, directory: str | os.PathLike[str], options: table.Options = table.Options()):  # noqa: B008
        """Opens a dataset.

        Raises:
          ValueError: no repacked dataset there, or one whose repacking did not finish.
        """
        root = pathlib.Path(directory)
        if not (root / repack.MANIFEST).exists():
            raise ValueError(f"{root}: no {repack.MANIFEST}, expected a finished repacked dataset. Repack again.")
        manifest = json.loads((root / repack.MANIFEST).read_text())
        columns = store.load(root / "columns", manifest["source"])
        if columns is None:
            raise ValueError(f"{root}: its columns are missing. Repack again.")
        problems = {problem["episode"]: problem["reason"] for problem in manifest["problems"]}
        ids, lengths = columns["ids"], columns["length"]
        layout = table.Layout(
            name=options.name or manifest["name"],
            digest=store.digest(sorted(root.glob("*.array_record")), root, "repacked", manifest),
            fps=manifest["fps"],
            cameras=tuple(manifest["cameras"]),
            state=(oxe.Field("state", tuple(manifest["state_names"]), ""),),
            action=(oxe.Field("action", tuple(manifest["action_names"]), ""),),
            lengths=lengths,
            ids=ids,
            damage={i: problems[int(number)] for i, number in enumerate(ids) if int(number) in problems},
            usual_name=manifest["name"],
        )
        super().__init__(layout, columns, options)
        plan = manifest["plan"]
        self._raw = plan["encoding"] == "raw"
        self._texts: list[str] = columns.meta["texts"]
        self._damage = {(item["episode"], item["frame"], item["camera"]): item["reason"] for item in manifest["damage"]}
        shards = self.stored // plan["episodes_per_shard"]
        starts = np.cumsum(lengths) - lengths
        self._paths = [os.fspath(root / repack.shard_name(int(shard))) for shard in shards]
        self._firsts = self.rows - starts[shards * plan["episodes_per_shard"]]

    def tasks(self, episode: int, frame: int) -> tuple[str, ...]:
        self.require(episode, [frame])
        reason = self._damage.get((int(self.episode_ids[episode]), frame, ""))
        if reason is not None:
            raise self.error(episode, frame, reason)
        ids = self._columns["tasks"][int(self.rows[episode]) + frame]
        return self.texts(episode, frame, (self._texts[i] for i in ids if i >= 0))

    def cameras_of(self, episode: int) -> tuple[str, ...]:
        present = self._columns["present"][self.stored[episode]]
        return tuple(camera for camera, there in zip(self.cameras, present) if there)

    def annotation(self, episode: int) -> str | None:
        number = int(self._columns["annotation"][self.stored[episode]])
        return None if number < 0 else self._texts[number]

    def same_task(self, episode: int) -> np.ndarray:
        groups = self._columns["same_task"][self.stored]
        return np.flatnonzero(groups == groups[episode])

    def depth_codes(self, episode: int, frame: int, cameras: Sequence[str]) -> np.ndarray | None:
        self.require(episode, [frame])
        name = next((f"depth:{camera}" for camera in cameras if f"depth:{camera}" in self._columns), None)
        return None if name is None else self._columns[name][int(self.rows[episode]) + frame].astype(np.int64)

    def frames(self, episode: int, frames: Sequence[int], cameras: Sequence[str]) -> dict[str, np.ndarray]:
        self.require(episode, frames)
        records = {camera: [self._record(episode, frame, camera) for frame in frames] for camera in cameras}
        stack = self._stack_raw if self._raw else self.stack
        return {camera: stack(episode, frames, camera, data) for camera, data in records.items()}

    def encoded(self, episode: int, frame: int, camera: str) -> bytes | None:
        self.require(episode, [frame])
        return None if self._raw else self._record(episode, frame, camera)

    def close(self) -> None:
        self._files.close()

    def _record(self, episode: int, frame: int, camera: str) -> bytes:
        if camera not in self.cameras_of(episode):
            raise self.error(episode, frame, f"no camera {camera!r}, expected one of {self.cameras_of(episode)}")
        row = int(self._firsts[episode]) + frame
        number = row * len(self.cameras) + self.cameras.index(camera)
        try:
            record = self._files.archive.read(self._paths[episode], number)
        except ValueError as error:
            raise self.error(episode, frame, f"{camera}: {error}") from error
        if not record:
            reason = self._damage.get((int(self.episode_ids[episode]), frame, camera), "the picture has 0 bytes")
            raise self.error(episode, frame, f"{camera}: {reason}")
        return record

    def _stack_raw(self, episode: int, frames: Sequence[int], camera: str, records: Sequence[bytes]) -> np.ndarray:
        sizes = {tuple(np.frombuffer(record, "<u4", 2).tolist()) for record in records}
        if len(sizes) != 1:
            raise self.error(episode, frames[0], f"{camera}: pictures of {sorted(sizes)} pixels together")
        shape = (*sizes.pop(), 3)
        return np.stack([np.frombuffer(record, np.uint8, offset=8).reshape(shape) for record in records])
