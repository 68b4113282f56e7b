"""How fast a dataset becomes batches, stage by stage, in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from molmoact2_jax import config
from molmoact2_jax.data import images, loader, pack, pictures
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.data.stream import Stream

WINDOW = 32  # frames of an episode decoded together in "sorted" order
BATCH = 4  # rows

Runs = Sequence[tuple[int, Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage did: `items` of a unit in wall seconds and in processor seconds of all threads."""

    name: str
    unit: str
    items: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Items per second of the clock."""
        return self.items / max(self.seconds, 1e-9)

    @property
    def core_rate(self) -> float:
        """Items per second of one core that is busy all the time."""
        return self.items / max(self.cpu_seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and both rates."""
        return dataclasses.asdict(self) | {"rate": round(self.rate, 2), "core_rate": round(self.core_rate, 2)}


def timed(name: str, unit: str, work: Callable[[], int]) -> Stage:
    """Runs `work`, which returns the number of items it made."""
    start, cpu = time.perf_counter(), time.process_time()
    items = work()
    return Stage(name, unit, items, time.perf_counter() - start, time.process_time() - cpu)


def choose(source: EpisodeSource, frames: int, order: str, seed: int) -> Runs:
    """Returns (episode, frames) of about `frames` frames: "shuffled" one by one, "sorted" in windows of neighbours."""
    size = 1 if order == "shuffled" else WINDOW
    starts = np.random.default_rng(seed).permutation(np.flatnonzero(source.valid))[: -(-frames // size)]
    places = [source.locate(index) for index in starts.tolist()]
    return [(e, range(frame, min(frame + size, int(source.episode_lengths[e])))) for e, frame in places]


def picture_stages(source: EpisodeSource, runs: Runs, processor: config.ProcessorConfig) -> Iterator[Stage]:
    """Times reading and decoding the cameras of some frames, together where a video holds them; then the resize."""
    decoded: list[np.ndarray] = []
    episode, frames = runs[0]
    if source.encoded(episode, frames[0], source.cameras_of(episode)[0]) is None:
        yield timed("decode", "images", lambda: _decode_video(source, runs, decoded))
    else:
        encoded: list[bytes] = []
        yield timed("read", "images", lambda: _read(source, runs, encoded))
        yield timed("decode", "images", lambda: _decode(encoded, decoded))
    yield timed("resize", "images", lambda: sum(images.crops_of(p, processor) is not None for p in decoded))


def _read(source: EpisodeSource, runs: Runs, encoded: list[bytes]) -> int:
    for episode, frames in runs:
        for camera in source.cameras_of(episode):
            encoded += [source.encoded(episode, frame, camera) or b"" for frame in frames]
    return len(encoded)


def _decode(encoded: Sequence[bytes], decoded: list[np.ndarray]) -> int:
    decoded += [pictures.decode(data) for data in encoded]
    return len(decoded)


def _decode_video(source: EpisodeSource, runs: Runs, decoded: list[np.ndarray]) -> int:
    for episode, frames in runs:
        for view in source.frames(episode, frames, source.cameras_of(episode)).values():
            decoded += list(view)
    return len(decoded)


def example_stages(stream: Stream, indices: Sequence[int]) -> Iterator[Stage]:
    """Times tokenising (prompts, states, chunks), packing on sizes alone, and whole batches with pixels.

    Args:
      stream: of one robot dataset.
      indices: sound examples of it to tokenise and pack; as many go through whole batches, which the stream draws.
    """
    metas: list[pack.Meta] = []
    yield timed("tokenise", "examples", lambda: _tokenise(stream, indices, metas))
    yield timed("pack", "examples", lambda: _pack(stream, metas))
    running = loader.Loader({"robot": stream}, loader.Options(global_batch=BATCH))
    yield timed("batches", "examples", lambda: _batches(running, len(indices)))
    running.close()


def _tokenise(stream: Stream, indices: Sequence[int], metas: list[pack.Meta]) -> int:
    metas += [stream.datasets[0].example(index, 0).meta(0, index, 0) for index in indices]
    return len(metas)


def _pack(stream: Stream, metas: Sequence[pack.Meta]) -> int:
    packer = pack.Packer(stream.shape.limits, stream.buffer)
    packed = [row for meta in metas if (row := packer.add(meta))]
    while packer.waiting:
        packed.append(packer.take())
    return sum(len(row.examples) for row in packed)


def _batches(running: loader.Loader, count: int) -> int:
    made = 0
    while made < count:
        made += int((next(running).chunk_example >= 0).sum())
    return made
