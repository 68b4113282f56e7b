"""Makes planned rows real: decodes the pictures of their examples and lays everything out as a `Batch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from molmoact2_jax import batch
from molmoact2_jax.data import example as example_lib
from molmoact2_jax.data import mixture, pack
from molmoact2_jax.data.example import Dataset, Example
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.data.stream import RowShape, Stream

RETRIES = 5  # replacements tried for a damaged example before its place stays empty


@dataclasses.dataclass(frozen=True)
class Item:
    """An example with its pixels, as `Dataset.pixels` returns them."""

    example: Example
    crops: np.ndarray
    pooling: np.ndarray


@dataclasses.dataclass(frozen=True)
class Made:
    """A row made real: at most the planned examples, and the damage met on the way."""

    items: tuple[Item, ...]
    damage: tuple[SampleError, ...]


def make(examples: Sequence[pack.Meta], datasets: Sequence[Dataset], limits: pack.Limits, seed: int) -> Made:
    """Decodes the examples of a row.

    A damaged example is replaced by another of its dataset that fits in its place, chosen by its own name; if none
    of `RETRIES` is sound and fits, the place stays empty. Either way the result is a function of the plan alone.
    """
    room = limits.sizes() - pack.sizes_of(examples).sum(axis=0)
    items: list[Item] = []
    damage: list[SampleError] = []
    for meta in examples:
        room += _size(meta)
        item = _first_sound(meta, datasets[meta.dataset], room, seed, damage)
        if item is not None:
            room -= _size(item.example.meta(0, 0, 0))
            items.append(item)
    return Made(tuple(items), tuple(damage))


def _size(meta: pack.Meta) -> np.ndarray:
    return pack.sizes_of([meta])[0]


def _first_sound(
    meta: pack.Meta, dataset: Dataset, room: np.ndarray, seed: int, damage: list[SampleError]
) -> Item | None:
    for attempt in range(1 + RETRIES):
        index = meta.index
        if attempt:
            index = int(mixture.example_rng(seed + attempt, meta.index, len(dataset), meta.epoch).randint(len(dataset)))
        try:
            example = dataset.example(index, meta.epoch)
            if (_size(example.meta(0, 0, 0)) <= room).all():
                return Item(example, *dataset.pixels(example))
        except SampleError as error:
            damage.append(error)
        except example_lib.Skipped:
            continue
    return None


def stack(rows: Sequence[Sequence[Item]], numbers: Sequence[int], shape: RowShape) -> batch.Batch:
    """Lays rows out as a batch.

    Args:
      rows: items of each row, in the plan's order.
      numbers: global number of each row.
      shape: of the stream.
    """
    arrays = _empty(len(rows), shape)
    for b, items in enumerate(rows):
        _fill(arrays, b, items, shape)
    return batch.Batch(**arrays, row=np.asarray(numbers, np.int32))


def _empty(count: int, shape: RowShape) -> dict[str, np.ndarray]:
    tokens = (count, shape.limits.tokens)
    chunks = (count, shape.limits.chunks)
    return dict(
        tokens=np.full(tokens, shape.pad, np.int32),
        positions=np.zeros(tokens, np.int32),
        segments=np.full(tokens, -1, np.int32),
        targets=np.full(tokens, shape.pad, np.int32),
        weights=np.zeros(tokens, np.float32),
        styles=np.full(tokens, -1, np.int32),
        crops=np.zeros((count, shape.limits.crops, shape.crop_size, shape.crop_size, 3), np.uint8),
        crop_valid=np.zeros((count, shape.limits.crops), bool),
        pooling=np.full((count, shape.windows, shape.window), -1, np.int32),
        actions=np.zeros((*chunks, shape.horizon, shape.channels), np.float32),
        action_valid=np.zeros((*chunks, shape.horizon), bool),
        channel_valid=np.zeros((*chunks, shape.channels), bool),
        chunk_example=np.full(chunks, -1, np.int32),
    )


def _fill(arrays: dict[str, np.ndarray], b: int, items: Sequence[Item], shape: RowShape) -> None:
    token, crop, window, chunk = 0, 0, 0, 0
    for number, item in enumerate(items):
        example = item.example
        place = (b, slice(token, token + len(example.tokens)))
        for name in ("tokens", "positions", "targets", "weights"):
            arrays[name][place] = getattr(example, name)
        arrays["segments"][place] = example.segments + batch.SEGMENT * number
        arrays["styles"][place] = example.style
        token += len(example.tokens)

        pooled = (b, slice(window, window + len(item.pooling)), slice(item.pooling.shape[1]))
        arrays["pooling"][pooled] = np.where(item.pooling < 0, -1, item.pooling + shape.patches * crop)
        arrays["crops"][b, crop : crop + len(item.crops)] = item.crops
        arrays["crop_valid"][b, crop : crop + len(item.crops)] = True
        window, crop = window + len(item.pooling), crop + len(item.crops)

        if example.chunk is not None:
            arrays["actions"][b, chunk] = example.chunk.actions
            arrays["action_valid"][b, chunk] = example.chunk.valid
            arrays["channel_valid"][b, chunk] = example.chunk.channels
            arrays["chunk_example"][b, chunk] = number
            chunk += 1


class Maker:
    """Makes rows of several streams; what a worker process holds."""

    def __init__(self, streams: Mapping[str, Stream]):
        self._streams = streams

    def make(self, stream: str, examples: Sequence[pack.Meta]) -> Made:
        """Makes a row of the named stream real."""
        found = self._streams[stream]
        return make(examples, found.datasets, found.shape.limits, found.seed)
