"""Index of a TFDS directory: one pass over its records finds columns, instructions and where every picture lies."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from molmoact2_jax.data import archive, oxe, rlds_features, store, tfrecord, wire
from molmoact2_jax.data.rlds_features import Dataset


@dataclasses.dataclass
class Episode:
    """One record: numbers and texts of its steps, spans and checksums of pictures, or why it is damaged."""

    record: tuple[int, int] = (0, 0)
    length: int = 0
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    flags: dict[str, bool] = dataclasses.field(default_factory=dict)
    damage: str = ""


def build(dataset: Dataset, row: oxe.Row, workers: int, progress: Callable[[int, int], None]) -> tuple[dict, dict]:
    """Reads every record of every shard, in threads. Returns arrays and meta for `store.save`."""
    shards: list[list[Episode]] = []
    with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
        read = functools.partial(read_shard, dataset, row)
        for episodes in pool.map(read, dataset.paths, dataset.lengths):
            shards.append(episodes)
            progress(len(shards), len(dataset.paths))
    return _collect(shards, row, dataset)


def read_shard(dataset: Dataset, row: oxe.Row, path: pathlib.Path, expected: int) -> list[Episode]:
    """Returns the episodes of one shard, damaged ones without content. `expected` is their number by the metadata."""
    records = _array_records if dataset.array_record else _tfrecords
    features, episodes = rlds_features.kept(dataset.features, row), list[Episode]()
    damage = f"{path.name}: holds fewer than {expected} records"
    try:
        for place, record in records(path):
            try:
                episodes.append(_parse(features, row, record, place))
            except ValueError as error:
                episodes.append(Episode(place, damage=f"{path.name}: {error}"))
    except (OSError, ValueError) as error:
        damage = f"{path.name}: {error}"
    return episodes + [Episode(damage=damage) for _ in range(expected - len(episodes))]


def _tfrecords(path: pathlib.Path) -> Iterator[tuple[tuple[int, int], bytes]]:
    found = tfrecord.scan(path)
    with path.open("rb") as file:
        for offset, length in zip(found.offsets.tolist(), found.lengths.tolist()):
            try:
                yield (offset, length), tfrecord.read(file, offset, length)
            except ValueError:
                yield (offset, length), b""
    if found.damage:
        raise ValueError(found.damage)


def _array_records(path: pathlib.Path) -> Iterator[tuple[tuple[int, int], bytes]]:
    records = archive.Archive(keep_bytes=0)
    for i in range(archive.count(path)):
        try:
            yield (i, 0), records.read(os.fspath(path), i)
        except ValueError:
            yield (i, 0), b""
    records.close()


def _parse(features: Any, row: oxe.Row, record: bytes, place: tuple[int, int]) -> Episode:
    """Reads one record.

    Raises:
      ValueError: it cannot be decoded, or its features differ in length.
    """
    import tensorflow_datasets as tfds

    if not record:
        raise ValueError("the record fails its checksum")
    try:
        parsed = features.deserialize_example_np(record, decoders={rlds_features.STEPS: tfds.decode.SkipDecoding()})
    except Exception as error:  # protobuf, TFDS and NumPy each raise their own kinds
        raise ValueError(f"TFDS cannot decode the record: {' '.join(str(error).split())}") from error
    values, kinds = flatten(parsed), rlds_features.leaves(features)
    spans = wire.byte_spans(record, [camera.key for camera in row.cameras])
    numbers = {key: _numbers(kinds[key], values[key], key) for key in rlds_features.numeric(kinds, row)}
    length = len(numbers[row.keys[0]])
    episode = Episode(
        place,
        length,
        numbers,
        texts={key: _texts(values[key], length) for key in row.language},
        pictures={camera.name: _with_checksums(record, spans.get(camera.key)) for camera in row.cameras},
        flags={camera.name: bool(values[camera.present]) for camera in row.cameras if camera.present},
    )
    lengths = {key: len(value) for key, value in (numbers | episode.texts).items()}
    lengths |= {camera: len(found[0]) for camera, found in episode.pictures.items()}
    if any(found != length for found in lengths.values()):
        raise ValueError(f"features differ in length: {lengths}")
    return episode


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {path: leaf} of nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def _numbers(feature: Any, values: Any, key: str) -> np.ndarray:
    import tensorflow_datasets as tfds

    values = np.asarray(values)
    if values.dtype == object and isinstance(feature, tfds.features.Tensor):  # stored as bytes, perhaps compressed
        try:
            decoded = [feature.decode_example_np(value) for value in values]
        except (ValueError, TypeError, zlib.error) as error:
            raise ValueError(f"{key} cannot be decoded: {error}") from error
        empty = np.zeros((0, *(size or 0 for size in feature.shape)), feature.np_dtype)
        values = np.stack(decoded) if decoded else empty
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{key} is {values.dtype}, expected numbers")
    return values


def _texts(values: Any, length: int) -> list[str]:
    """Texts of the steps of an episode. Bytes that are not UTF-8 survive as surrogates, for the reader to refuse."""
    encoded = [values] * length if isinstance(values, bytes) else list(values)
    return [value.decode("utf-8", "surrogateescape") for value in encoded]


def _with_checksums(record: bytes, spans: wire.Spans | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if spans is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint32)
    offsets, lengths = spans
    crcs = [google_crc32c.value(record[o : o + n]) for o, n in zip(offsets.tolist(), lengths.tolist())]
    return offsets, lengths, np.array(crcs, np.uint32)


def _collect(shards: Sequence[list[Episode]], row: oxe.Row, dataset: Dataset) -> tuple[dict, dict]:
    """Concatenates the episodes of all shards. Offsets of pictures become absolute in TFRecord files."""
    episodes = [episode for shard in shards for episode in shard]
    sound = [episode for episode in episodes if not episode.damage]
    if episodes and not sound:
        raise ValueError(f"{dataset.root}: all {len(episodes)} episodes are damaged, the first: {episodes[0].damage}.")
    arrays: dict[str, np.ndarray] = {
        "length": np.array([episode.length for episode in episodes], np.int64),
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard) for shard in shards]),
        "record": np.array([episode.record for episode in episodes], np.int64).reshape(-1, 2),
    }
    for key in sound[0].numbers if sound else ():
        arrays[f"column:{key}"] = np.concatenate([episode.numbers[key] for episode in sound])
    for camera in row.cameras:
        parts = [episode.pictures[camera.name] for episode in sound]
        bases = [0 if dataset.array_record else episode.record[0] for episode in sound]
        arrays[f"offset:{camera.name}"] = np.concatenate([p[0] + base for p, base in zip(parts, bases)])
        arrays[f"bytes:{camera.name}"] = np.concatenate([p[1] for p in parts])
        arrays[f"crc:{camera.name}"] = np.concatenate([p[2] for p in parts])
        if camera.present:
            arrays[f"present:{camera.name}"] = np.array([e.flags.get(camera.name, False) for e in episodes])
    texts: dict[str, int] = {}
    for key in row.language:
        ids = [texts.setdefault(text, len(texts)) for episode in sound for text in episode.texts[key]]
        arrays[f"text:{key}"] = np.array(ids, np.int32)
    damage = {str(i): episode.damage for i, episode in enumerate(episodes) if episode.damage}
    empty = {str(i): "the episode has no steps" for i, e in enumerate(episodes) if not e.damage and not e.length}
    return arrays, {"texts": list(texts), "damage": damage | empty}


def open_store(
    dataset: Dataset,
    row: oxe.Row,
    cache: str | os.PathLike[str] | None,
    workers: int,
    progress: Callable[[int, int], None],
) -> store.Store:
    """Returns the index, from the cache where the files are still those it was made from."""
    metadata = [dataset.root / "features.json", dataset.root / "dataset_info.json"]
    stamp = store.stamp([*metadata, *dataset.paths], row, dataset.lengths)
    where = store.place(dataset.root, f"{row.name}-index", cache)
    found = store.load(where, stamp)
    return found if found is not None else store.save(where, stamp, *build(dataset, row, workers, progress))
