"""How fast a dataset becomes batches, stage by stage, in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from molmoact2_jax import config
from molmoact2_jax.data import images, loader, pack, pictures, plan
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.data.stream import Stream

WINDOW = 32  # frames of an episode decoded together in "sorted" order
BATCH = 4  # rows
KEPT = 64  # decoded pictures that wait for the resize: more would measure the memory they fill

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
    kept: list[np.ndarray] = []
    episode, frames = runs[0]
    if source.encoded(episode, frames[0], source.cameras_of(episode)[0]) is None:
        yield timed("decode", "images", lambda: _decode_video(source, runs, kept))
    else:
        encoded: list[bytes] = []
        yield timed("read", "images", lambda: _read(source, runs, encoded))
        yield timed("decode", "images", lambda: _decode(encoded, kept))
    yield timed("resize", "images", lambda: sum(images.crops_of(p, processor) is not None for p in kept))


def _read(source: EpisodeSource, runs: Runs, encoded: list[bytes]) -> int:
    for episode, frames in runs:
        for camera in source.cameras_of(episode):
            encoded += [source.encoded(episode, frame, camera) or b"" for frame in frames]
    return len(encoded)


def _decode(encoded: Sequence[bytes], kept: list[np.ndarray]) -> int:
    for data in encoded:
        picture = pictures.decode(data)
        if len(kept) < KEPT:
            kept.append(picture)
    return len(encoded)


def _decode_video(source: EpisodeSource, runs: Runs, kept: list[np.ndarray]) -> int:
    count = 0
    for episode, frames in runs:
        for view in source.frames(episode, frames, source.cameras_of(episode)).values():
            count += len(view)
            kept += list(view[: max(0, KEPT - len(kept))])
    return count


def planning_stages(stream: Stream, indices: Sequence[int]) -> Iterator[Stage]:
    """Times tokenising (prompts, states, chunks), packing on sizes alone, and the planner, which draws and does both.

    Args:
      stream: of one robot dataset.
      indices: sound examples of it to tokenise and pack; the planner draws as many.
    """
    metas: list[pack.Meta] = []
    yield timed("tokenise", "examples", lambda: _tokenise(stream, indices, metas))
    yield timed("pack", "examples", lambda: _pack(stream, metas))
    yield timed("plan", "examples", lambda: _plan(stream, len(indices)))


def batch_stages(stream: Stream, count: int) -> tuple[list[Stage], loader.Report]:
    """Times whole batches, from draws to pixels, that hold `count` examples; the report says how full rows are."""
    running = loader.Loader({"robot": stream}, loader.Options(global_batch=BATCH))
    crops: list[int] = []
    whole = timed("batches", "examples", lambda: _batches(running, count, crops))
    running.close()
    return [whole, dataclasses.replace(whole, unit="images", items=sum(crops))], running.report


def _tokenise(stream: Stream, indices: Sequence[int], metas: list[pack.Meta]) -> int:
    metas += [stream.datasets[0].example(index, 0).meta(0, index, 0) for index in indices]
    return len(metas)


def _pack(stream: Stream, metas: Sequence[pack.Meta]) -> int:
    packer = pack.Packer(stream.shape.limits, stream.buffer)
    packed = [row for meta in metas if (row := packer.add(meta))]
    while packer.waiting:
        packed.append(packer.take())
    return sum(len(row.examples) for row in packed)


def _plan(stream: Stream, count: int) -> int:
    planner = plan.RowPlanner(stream)
    while planner.state()["position"] < count:
        next(planner)
    return planner.state()["position"]


def _batches(running: loader.Loader, count: int, crops: list[int]) -> int:
    made = 0
    while made < count:
        batch = next(running)
        made += int((batch.chunk_example >= 0).sum())
        crops.append(int(batch.crop_valid.sum()))
    return made
