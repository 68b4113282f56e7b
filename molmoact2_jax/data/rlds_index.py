"""Index of a TFDS directory: one pass over its records finds columns, instructions and where every picture lies."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from molmoact2_jax.data import archive, oxe, store, tfrecord, wire

STEPS = "steps"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What TFDS says of a directory. `lengths` counts the records of each shard; `features` decodes them."""

    root: pathlib.Path
    features: Any
    paths: tuple[pathlib.Path, ...]
    lengths: tuple[int, ...]
    array_record: bool


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


def describe(directory: str | os.PathLike[str], split: str) -> Dataset:
    """Reads `features.json` and `dataset_info.json` of a TFDS directory, or of the only version under it.

    Raises:
      ValueError: no dataset there, metadata that TFDS cannot read, or no such split.
    """
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    root = _version(pathlib.Path(directory))
    try:
        builder = tfds.builder_from_directory(root)
    except (OSError, ValueError, json_format.Error) as error:
        raise ValueError(f"{root}: TFDS cannot read features.json or dataset_info.json ({error}).") from error
    if split not in builder.info.splits:
        raise ValueError(f"{root}: split {split!r}, expected one of {sorted(builder.info.splits)}.")
    info = builder.info.splits[split]
    paths = tuple(root / pathlib.Path(path).name for path in info.filepaths)
    array_record = "array_record" in builder.info.file_format.value
    return Dataset(root, builder.info.features, paths, tuple(info.shard_lengths), array_record)


def _version(directory: pathlib.Path) -> pathlib.Path:
    if (directory / "features.json").exists():
        return directory
    versions = sorted(path.parent for path in directory.glob("*/features.json"))
    if len(versions) != 1:
        found = [path.name for path in versions] or "none"
        raise ValueError(f"{directory}: features.json in {found}, expected a TFDS directory or one version under it.")
    return versions[0]


def check(dataset: Dataset, row: oxe.Row) -> None:
    """Compares the features that a row names with those the dataset has.

    Raises:
      ValueError: features are missing; lists what there is.
    """
    known = leaves(dataset.features)
    missing = [key for key in row.features if key not in known]
    if missing:
        raise ValueError(
            f"{dataset.root}: no features {missing}, which row {row.name!r} names. There are {sorted(known)}. "
            f"Adapt the row: dataclasses.replace(oxe.ROWS[{row.name!r}], ...)."
        )
    kinds = {camera.key: type(known[camera.key]).__name__ for camera in row.cameras}
    if set(kinds.values()) - {"Image"}:
        raise ValueError(f"{dataset.root}: {kinds}, expected Image features for the cameras of row {row.name!r}.")


def leaves(features: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {full name: TFDS feature} of a tree of features; nested `Dataset` and `FeaturesDict` give path names."""
    import tensorflow_datasets as tfds

    if isinstance(features, tfds.features.Dataset):
        return leaves(features.feature, prefix)
    if isinstance(features, tfds.features.FeaturesDict):
        parts = (leaves(feature, f"{prefix}/{name}" if prefix else name) for name, feature in features.items())
        return {name: feature for part in parts for name, feature in part.items()}
    return {prefix: features}


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
    episodes: list[Episode] = []
    damage = f"{path.name}: holds fewer than {expected} records"
    try:
        for place, record in records(path):
            try:
                episodes.append(_parse(dataset.features, row, record, place))
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
        parsed = features.deserialize_example_np(record, decoders={STEPS: tfds.decode.SkipDecoding()})
    except Exception as error:  # protobuf, TFDS and NumPy each raise their own kinds
        raise ValueError(f"TFDS cannot decode the record: {error}") from error
    values, kinds = flatten(parsed), leaves(features)
    spans = wire.byte_spans(record, [camera.key for camera in row.cameras])
    numbers = {key: _numbers(kinds[key], values[key], key) for key in numeric(kinds, row)}
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


def numeric(kinds: Mapping[str, Any], row: oxe.Row) -> list[str]:
    """Returns the numeric step features that are kept: what the row reads, and single numbers such as `is_last`."""
    import tensorflow_datasets as tfds

    def narrow(feature: Any) -> bool:
        plain = isinstance(feature, tfds.features.Scalar | tfds.features.Tensor)
        return plain and feature.np_dtype.kind in "biuf" and feature.shape in ((), (1,))

    steps = (key for key, feature in kinds.items() if key.startswith(f"{STEPS}/") and narrow(feature))
    return list(dict.fromkeys((*row.keys, *steps)))


def _numbers(feature: Any, values: Any, key: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype == object:  # tensors that TFDS stored as bytes
        values = np.stack([feature.decode_example_np(value) for value in values]) if len(values) else np.zeros((0, 1))
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
