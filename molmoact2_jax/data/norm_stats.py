"""`norm_stats.json`: per robot ("tag") the statistics and facts that turn its numbers into the model's and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FORMAT = "molmoact2_norm_stats.v1"
MODES = ("none", "mean_std", "min_max", "q01_q99", "q10_q90")
QUANTILES = ("q01", "q10", "q50", "q90", "q99")
CHANNEL_FIELDS = ("mean", "std", "min", "max", *QUANTILES, "max_step", "mask", "names")

Floats = tuple[float, ...]
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TagStats:
    """Statistics of an action or a state, one entry per channel, in the dataset's own units; None where unknown.

    Attributes:
      max_step: largest change from one frame of an episode to the next. Our extension of the format.
      mask: true for channels that are normalised; the others pass through raw.
      count: frames they were taken from.
      source: the JSON object they were read from; fields that this class does not know are kept when written.
    """

    mean: Floats | None = None
    std: Floats | None = None
    min: Floats | None = None
    max: Floats | None = None
    q01: Floats | None = None
    q10: Floats | None = None
    q50: Floats | None = None
    q90: Floats | None = None
    q99: Floats | None = None
    max_step: Floats | None = None
    mask: tuple[bool, ...] | None = None
    names: tuple[str, ...] | None = None
    count: int | None = None
    source: Json = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def width(self) -> int:
        """Channels of the robot, not the padded width of the model; 0 where nothing is known."""
        return next((len(v) for f in CHANNEL_FIELDS if (v := getattr(self, f)) is not None), 0)

    def name(self, channel: int) -> str:
        """Returns what errors call a channel."""
        return f"{channel} ({self.names[channel]})" if self.names else str(channel)


@dataclasses.dataclass(frozen=True)
class Tag:
    """One robot and what its data mean.

    Attributes:
      horizon: steps of a chunk; n_action_steps: how many of them are executed before the next call.
      cameras: in the order of the prompt; () takes the dataset's order.
      alternative_cameras: a second set of which training may draw.
      setup, control: strings of the prompt.
      action_key, state_keys: columns of the dataset, concatenated in that order.
      normalize_gripper: whether grippers are normalised like joints; None where the file does not say.
      joint_signs, joint_offsets: model = signs * robot + offsets on the first channels; offsets in the model's units.
        Our extension of the format.
      provenance: where the statistics come from and how exact they are. Our extension.
      source: as in `TagStats`.
    """

    action: TagStats | None = None
    state: TagStats | None = None
    horizon: int | None = None
    n_action_steps: int | None = None
    cameras: tuple[str, ...] = ()
    alternative_cameras: tuple[str, ...] = ()
    setup: str = ""
    control: str = ""
    action_key: str | None = None
    state_keys: tuple[str, ...] = ()
    normalize_gripper: bool | None = None
    joint_signs: Floats | None = None
    joint_offsets: Floats | None = None
    provenance: Json | None = dataclasses.field(default=None, hash=False)
    source: Json = dataclasses.field(default_factory=dict, compare=False, repr=False)


# ours -> released (the last three are ours in both)
_TAG_FIELDS = dict(
    action="action_stats", state="state_stats", horizon="action_horizon", n_action_steps="n_action_steps",
    cameras="camera_keys", alternative_cameras="camera_keys_alternative", setup="setup_type", control="control_mode",
    action_key="action_key", state_keys="state_keys", normalize_gripper="normalize_gripper",
    joint_signs="joint_signs", joint_offsets="joint_offsets", provenance="provenance",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NormStats:
    """All robots of a checkpoint and the one way their numbers are normalised."""

    mode: str = "q01_q99"
    tags: Mapping[str, Tag] = dataclasses.field(default_factory=dict, hash=False)
    source: Json = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def tag(self, name: str) -> Tag:
        """Returns one robot, checked.

        Raises:
          ValueError: there is none of that name (lists those there are), or its entry contradicts itself.
        """
        if name not in self.tags:
            raise ValueError(f"norm_tag: {name!r}, expected one of {sorted(self.tags)}. Pass the robot's tag.")
        check(self.tags[name], self.mode, f"norm_stats[{name!r}]")
        return self.tags[name]


def load(path: str | pathlib.Path) -> NormStats:
    """Reads a file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON of this format, or its mode is unknown.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"norm_stats: no file {path}, expected beside config.json. Copy it from the release.")
    try:
        return from_json(json.loads(path.read_text()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"norm_stats: cannot read {path}: {error}") from error


def from_json(source: Json) -> NormStats:
    """Builds the record from a parsed file; a missing mode means "min_max", as released."""
    mode = source.get("norm_mode", "min_max")
    if mode not in MODES:
        raise ValueError(f"norm_mode: {mode!r}, expected one of {MODES}.")
    if not isinstance(source.get("metadata_by_tag"), Mapping):
        raise ValueError("metadata_by_tag: missing, expected an object with one entry per robot.")
    return NormStats(mode, {name: _tag(entry) for name, entry in source["metadata_by_tag"].items()}, source)


def _tag(source: Json) -> Tag:
    values: dict[str, Any] = {o: source[key] for o, key in _TAG_FIELDS.items() if source.get(key) is not None}
    if "state_keys" not in values and source.get("state_key"):
        values["state_keys"] = [source["state_key"]]
    for field in ("action", "state"):
        if field in values:
            values[field] = stats_from_json(values[field])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Tag(**fields, source=source)


def stats_from_json(source: Json) -> TagStats:
    """Builds statistics from the lists of `meta/stats.json` or `norm_stats.json`; scalars stand for one channel."""
    values: dict[str, Any] = {}
    for field in CHANNEL_FIELDS:
        if source.get(field) is not None:
            kind = {"mask": bool, "names": str}.get(field, float)
            values[field] = tuple(kind(v) for v in np.ravel(source[field]).tolist())
    if source.get("count") is not None:
        values["count"] = int(np.ravel(source["count"])[0])
    return TagStats(**values, source=source)


def save(path: str | pathlib.Path, stats: NormStats) -> None:
    """Writes a file that `load` reads back equal; fields that were read but not understood are kept."""
    pathlib.Path(path).write_text(json.dumps(to_json(stats), indent=1, allow_nan=False) + "\n")


def to_json(stats: NormStats) -> dict[str, Any]:
    """Returns the file's content."""
    base = dict(stats.source) or {"format": FORMAT}
    tags = {name: _tag_to_json(tag) for name, tag in stats.tags.items()}
    return {**base, "norm_mode": stats.mode, "metadata_by_tag": tags}


def _tag_to_json(tag: Tag) -> dict[str, Any]:
    values = {key: getattr(tag, ours) for ours, key in _TAG_FIELDS.items()}
    for key in ("action_stats", "state_stats"):
        values[key] = None if values[key] is None else stats_to_json(values[key])
    return _overlay(tag.source, values, empty=(None, (), ""))


def stats_to_json(stats: TagStats) -> dict[str, Any]:
    """Returns the JSON object of one set of statistics."""
    values = {field: getattr(stats, field) for field in CHANNEL_FIELDS}
    return _overlay(stats.source, values | {"count": None if stats.count is None else [stats.count]}, empty=(None,))


def _overlay(source: Json, values: Json, empty: tuple[Any, ...]) -> dict[str, Any]:
    """Replaces fields of `source`; empty ones are written only where it had them, absent (None) ones never."""
    kept = {k: v for k, v in values.items() if v not in empty or (v is not None and k in source)}
    unknown = {k: v for k, v in source.items() if k not in values}
    merged = {**unknown, **{k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}}
    return {k: merged[k] for k in [*source, *merged] if k in merged}


def check(tag: Tag, mode: str, where: str) -> None:
    """Refuses an entry that cannot be used.

    Raises:
      ValueError: fields of different width, numbers that are not finite, statistics that `mode` needs and that are
        missing, impossible steps, or joint signs without offsets.
    """
    for name in ("action", "state"):
        if (stats := getattr(tag, name)) is not None:
            check_stats(stats, mode, f"{where}.{name}_stats")
    if tag.horizon is not None and tag.horizon < 1:
        raise ValueError(f"{where}.action_horizon: {tag.horizon}, expected at least 1.")
    if tag.n_action_steps is not None and not 1 <= tag.n_action_steps <= (tag.horizon or tag.n_action_steps):
        raise ValueError(f"{where}.n_action_steps: {tag.n_action_steps}, expected 1 to {tag.horizon} (the horizon).")
    lengths = [None if v is None else len(v) for v in (tag.joint_signs, tag.joint_offsets)]
    if lengths[0] != lengths[1]:
        raise ValueError(f"{where}: {lengths[0]} joint_signs and {lengths[1]} joint_offsets, expected as many of both.")


def check_stats(stats: TagStats, mode: str, where: str) -> None:
    """Refuses statistics of uneven width, with NaN or infinities, or without what `mode` needs."""
    needed = {"none": (), "mean_std": ("mean", "std"), "min_max": ("min", "max")}.get(mode, tuple(mode.split("_")))
    for field in needed:
        if getattr(stats, field) is None:
            raise ValueError(f"{where}.{field}: missing, required by norm_mode {mode!r}. Compute the statistics again.")
    for field in CHANNEL_FIELDS:
        values = getattr(stats, field)
        if values is not None and len(values) != stats.width:
            raise ValueError(f"{where}.{field}: {len(values)} entries, expected {stats.width}, one per channel.")
        if values is not None and field not in ("mask", "names"):
            bad = [stats.name(i) for i, v in enumerate(values) if not math.isfinite(v)]
            if bad:
                raise ValueError(f"{where}.{field}: not finite in channels {bad}. Compute the statistics again.")


def gripper_mask(names: Sequence[str] | None, width: int, *, normalize_gripper: bool) -> tuple[bool, ...]:
    """Returns which channels are normalised: all, or all whose name lacks "gripper".

    Raises:
      ValueError: grippers shall pass through raw and the channels have no names to find them by.
    """
    if normalize_gripper:
        return (True,) * width
    if names is None or len(names) != width:
        raise ValueError(
            f"names: {names and len(names)} for {width} channels, expected one each to find the gripper. "
            "Name the channels, give a mask, or set normalize_gripper."
        )
    return tuple("gripper" not in name.lower() for name in names)


def merge(parts: Sequence[TagStats]) -> TagStats:
    """Joins statistics of several datasets of one robot.

    Extremes, means and deviations are exact. Quantiles are averages weighted by count, which is not the quantile of
    the union; record that in the tag's provenance.

    Raises:
      ValueError: a part has no count, or its channels are named or masked differently.
    """
    if not parts or any(p.count is None for p in parts):
        raise ValueError("merge: expected at least one set of statistics, each with its count of frames.")
    if len({(p.names, p.mask, p.width) for p in parts}) > 1:
        raise ValueError(f"merge: channels differ: {[p.names or p.width for p in parts]}. Give each layout a tag.")
    counts = np.asarray([p.count for p in parts], np.float64)

    def rows(field: str) -> np.ndarray | None:
        values = [getattr(p, field) for p in parts]
        return None if None in values else np.asarray(values, np.float64)

    merged: dict[str, Any] = {q: _weighted(rows(q), counts) for q in ("mean", *QUANTILES)}
    merged |= {"min": _reduced(rows("min"), np.min)}
    merged |= {field: _reduced(rows(field), np.max) for field in ("max", "max_step")}
    merged["std"] = _pooled_std(rows("mean"), rows("std"), counts)
    return TagStats(**merged, mask=parts[0].mask, names=parts[0].names, count=int(counts.sum()))


def _weighted(rows: np.ndarray | None, counts: np.ndarray) -> Floats | None:
    return None if rows is None else tuple(np.average(rows, axis=0, weights=counts).tolist())


def _reduced(rows: np.ndarray | None, reduce: Any) -> Floats | None:
    return None if rows is None else tuple(reduce(rows, axis=0).tolist())


def _pooled_std(means: np.ndarray | None, stds: np.ndarray | None, counts: np.ndarray) -> Floats | None:
    if means is None or stds is None:
        return None
    center = np.average(means, axis=0, weights=counts)
    return tuple(np.sqrt(np.average(stds**2 + (means - center) ** 2, axis=0, weights=counts)).tolist())


def digest(tag: Tag) -> str:
    """Returns a hexadecimal fingerprint of what a tag means; its provenance does not count."""
    content = _tag_to_json(dataclasses.replace(tag, provenance=None, source={}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
