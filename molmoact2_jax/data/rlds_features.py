"""What TFDS says of an RLDS directory: files, splits and features, and which of these a row of the OXE table needs."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from molmoact2_jax.data import oxe

STEPS = "steps"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What TFDS says of a directory. `lengths` counts the records of each shard; `features` decodes them."""

    root: pathlib.Path
    features: Any
    paths: tuple[pathlib.Path, ...]
    lengths: tuple[int, ...]
    array_record: bool


def describe(directory: str | os.PathLike[str], split: str) -> Dataset:
    """Reads `features.json` and `dataset_info.json` of a TFDS directory, or of the only version under it.

    Raises:
      ValueError: no dataset there, metadata that TFDS cannot read, or no such split.
    """
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    root = _version(pathlib.Path(directory))
    try:
        info = tfds.builder_from_directory(root).info
        files = {name: [pathlib.Path(path).name for path in found.filepaths] for name, found in info.splits.items()}
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError, json_format.Error) as error:
        raise ValueError(f"{root}: TFDS cannot read features.json or dataset_info.json ({error}).") from error
    if split not in files:
        raise ValueError(f"{root}: split {split!r}, expected one of {sorted(files)}.")
    kind, lengths = info.file_format.value, tuple(info.splits[split].shard_lengths)
    if kind not in ("tfrecord", "array_record"):
        raise ValueError(
            f"{root}: files of format {kind!r}, expected tfrecord or array_record. Convert them with TFDS."
        )
    return Dataset(root, info.features, tuple(root / name for name in files[split]), lengths, kind == "array_record")


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
      ValueError: features are missing, with a list of what there is; or have too few channels, or are of other kinds.
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
    for field in (*row.state, *row.action):
        shape, wanted = known[field.key].shape, field.start + len(field.names)
        if None not in shape and math.prod(shape) < wanted:
            raise ValueError(
                f"{dataset.root}: {field.key}: {math.prod(shape)} channels, expected {wanted} or more by row "
                f"{row.name!r}. Correct the names of its fields."
            )


def leaves(features: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {full name: TFDS feature} of a tree of features; nested `Dataset` and `FeaturesDict` give path names."""
    import tensorflow_datasets as tfds

    if isinstance(features, tfds.features.Dataset):
        return leaves(features.feature, prefix)
    if isinstance(features, tfds.features.FeaturesDict):
        parts = (leaves(feature, f"{prefix}/{name}" if prefix else name) for name, feature in features.items())
        return {name: feature for part in parts for name, feature in part.items()}
    return {prefix: features}


def numeric(kinds: Mapping[str, Any], row: oxe.Row) -> list[str]:
    """Returns the numeric step features that are kept: what the row reads, and single numbers such as `is_last`."""
    import tensorflow_datasets as tfds

    def narrow(feature: Any) -> bool:
        plain = isinstance(feature, tfds.features.Scalar | tfds.features.Tensor)
        return plain and np.dtype(feature.np_dtype).kind in "biuf" and feature.shape in ((), (1,))

    steps = (key for key, feature in kinds.items() if key.startswith(f"{STEPS}/") and narrow(feature))
    return list(dict.fromkeys((*row.keys, *steps)))


def kept(features: Any, row: oxe.Row) -> Any:
    """Returns the part of a tree of features that the index keeps; pictures are found by their bytes (`wire`).

    Ragged features stay, as TFDS does not skip them in a record.
    """
    flags = (camera.present for camera in row.cameras if camera.present)
    return _part(features, {*numeric(leaves(features), row), *row.language, *flags})


def _part(features: Any, names: Container[str], prefix: str = "") -> Any:
    """Returns the features of some full names, None where there is none."""
    import tensorflow_datasets as tfds

    if isinstance(features, tfds.features.Dataset):
        part = _part(features.feature, names, prefix)
        return None if part is None else tfds.features.Dataset(part)
    if isinstance(features, tfds.features.FeaturesDict):
        parts = {name: _part(f, names, f"{prefix}/{name}" if prefix else name) for name, f in features.items()}
        chosen = {name: part for name, part in parts.items() if part is not None}
        return tfds.features.FeaturesDict(chosen) if chosen else None
    return features if prefix in names or isinstance(features, tfds.features.Sequence) else None
