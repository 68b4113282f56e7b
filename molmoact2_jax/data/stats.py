"""Exact statistics of robot datasets from their columns alone: no picture is decoded."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.data import lerobot_meta, norm_stats, table
from molmoact2_jax.data.source import EpisodeSource

LEVELS = {name: int(name[1:]) / 100 for name in norm_stats.QUANTILES}
EXACT, AVERAGED = "exact", "averages weighted by count, not those of the union"
STORED = "as the dataset's own file has them"
_STATE = "observation.state"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers that statistics of one dataset are taken from: every frame that is not quarantined, once.

    Attributes:
      name, digest, fps, cameras: of the source.
      episodes: with at least one frame.
      excluded: frames left out because the quarantine file names them.
      state: f32[N, D]; action: f32[N, C]; robot units.
      max_step: largest change of an action from one frame of an episode to the next, f64[C].
      state_names, action_names: one word per channel.
    """

    name: str
    digest: str
    fps: float
    cameras: tuple[str, ...]
    episodes: int
    excluded: int
    state: np.ndarray
    action: np.ndarray
    max_step: np.ndarray
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def provenance(self) -> dict[str, Any]:
        """Returns what identifies them, as JSON values."""
        return {
            "name": self.name,
            "digest": self.digest,
            "episodes": self.episodes,
            "frames": len(self.action),
            "excluded_frames": self.excluded,
            "fps": self.fps,
        }


def read(source: EpisodeSource) -> Numbers:
    """Reads the columns of a source.

    Raises:
      ValueError: there is no frame to take statistics from.
    """
    if not source.valid.any():
        raise ValueError(
            f"{source.name}: {source.num_frames} frames, all quarantined, expected some to take statistics from."
        )
    columns = source.columns(("state", "action"))
    keep: Any = slice(None) if source.valid.all() else source.valid
    return Numbers(
        name=source.name,
        digest=source.digest,
        fps=source.fps,
        cameras=source.cameras,
        episodes=int((source.episode_lengths > 0).sum()),
        excluded=int((~source.valid).sum()),
        state=columns["state"][keep],
        action=columns["action"][keep],
        max_step=_max_step(columns["action"], source),
        state_names=source.state_names,
        action_names=source.action_names,
    )


def _max_step(action: np.ndarray, source: EpisodeSource) -> np.ndarray:
    """Returns the largest change of each channel between neighbours that nobody quarantined; 0 where there are none."""
    follows = np.ones(len(action), bool)
    follows[source.episode_starts[source.episode_lengths > 0]] = False
    kept = (follows & source.valid)[1:] & source.valid[:-1]
    channels = (np.abs(np.diff(column.astype(np.float64)))[kept].max(initial=0) for column in action.T)
    return np.fromiter(channels, np.float64)


def exact(parts: Sequence[np.ndarray], names: Sequence[str], mask: Sequence[bool]) -> norm_stats.TagStats:
    """Computes the statistics of the concatenation of `parts`, one channel at a time, in float64.

    Quantiles are NumPy's (linear between neighbours); `std` is that of the population, as in LeRobot.

    Args:
      parts: f32[N_i, C] each, together at least one row.
      names: one word per channel.
      mask: true for channels that are normalised.

    Raises:
      ValueError: a value is not finite.
    """
    values: dict[str, list[float]] = {field: [] for field in ("mean", "std", "min", "max", *LEVELS)}
    for channel, name in enumerate(names):
        column = np.concatenate([part[:, channel] for part in parts]).astype(np.float64)
        bad = np.count_nonzero(~np.isfinite(column))
        if bad:
            raise ValueError(
                f"statistics: channel {channel} ({name}) is not finite in {bad} of {len(column)} frames. "
                "Quarantine them: molmoact2 data check DATASET --quarantine FILE, then data stats with the same file."
            )
        numbers = (column.mean(), column.std(), column.min(), column.max(), *np.quantile(column, list(LEVELS.values())))
        for field, number in zip(values, numbers, strict=True):
            values[field].append(float(number))
    columns: dict[str, Any] = {field: tuple(numbers) for field, numbers in values.items()}
    return norm_stats.TagStats(**columns, mask=tuple(mask), names=tuple(names), count=sum(map(len, parts)))


def measure(datasets: Sequence[Numbers], facts: norm_stats.Tag) -> norm_stats.Tag:
    """Computes the statistics of the union of datasets of one robot.

    Args:
      datasets: at least one; channels are named alike in all of them.
      facts: everything but the statistics; `normalize_gripper` None means False.

    Returns:
      `facts` with exact statistics, and provenance that names every dataset.

    Raises:
      ValueError: channels differ between datasets, or a value is not finite.
    """
    found: dict[str, norm_stats.TagStats] = {}
    for kind in ("action", "state"):
        names = _agreed(datasets, kind)
        mask = norm_stats.gripper_mask(names, len(names), normalize_gripper=bool(facts.normalize_gripper))
        found[kind] = exact([getattr(numbers, kind) for numbers in datasets], names, mask)
    steps = np.max([numbers.max_step for numbers in datasets], axis=0)
    action = dataclasses.replace(found["action"], max_step=tuple(steps.tolist()))
    tag = dataclasses.replace(facts, action=action, state=found["state"])
    return _sign(tag, EXACT, [numbers.provenance() for numbers in datasets])


def _agreed(datasets: Sequence[Numbers], kind: str) -> tuple[str, ...]:
    layouts = {getattr(numbers, f"{kind}_names"): numbers.name for numbers in datasets}
    if len(layouts) != 1:
        lines = "; ".join(f"{name}: {list(names)}" for names, name in layouts.items())
        raise ValueError(f"statistics: {kind} channels differ between datasets: {lines}. Give each layout its own tag.")
    return next(iter(layouts))


def of_lerobot(root: str | os.PathLike[str], facts: norm_stats.Tag) -> norm_stats.Tag:
    """Reads the statistics that a LeRobot dataset brings in `meta/stats.json`, where its columns are not at hand.

    Args:
      root: of the dataset; only its metadata is read.
      facts: names the columns (`action_key`, `state_keys`); everything but the statistics is kept.

    Raises:
      ValueError: no such file, a feature without statistics, or one of another width than its names.
    """
    path = pathlib.Path(root) / "meta" / "stats.json"
    if not path.exists():
        raise ValueError(f"{path}: missing, expected beside info.json. Compute statistics from the columns instead.")
    stored, meta = json.loads(path.read_text("utf-8")), lerobot_meta.read(pathlib.Path(root))
    found: dict[str, Any] = {}
    for kind, keys in (("action", (facts.action_key or "action",)), ("state", facts.state_keys or (_STATE,))):
        absent = [key for key in keys if key not in stored]
        if absent:
            raise ValueError(
                f"{path}: no statistics of {absent}, expected {list(keys)}. Compute them from the columns."
            )
        names = tuple(name for key in keys for name in meta.channels(key))
        shared = [field for field in norm_stats.CHANNEL_FIELDS if all(field in stored[key] for key in keys)]
        values = {field: [v for key in keys for v in np.ravel(stored[key][field]).tolist()] for field in shared}
        mask = norm_stats.gripper_mask(names, len(names), normalize_gripper=bool(facts.normalize_gripper))
        known = {"names": names, "mask": mask, "count": stored[keys[0]].get("count")}
        found[kind] = dataclasses.replace(norm_stats.stats_from_json(values | known), source={})
        norm_stats.check_stats(found[kind], "none", f"{path}, {list(keys)}")
    origin = {"name": pathlib.Path(root).resolve().name, "frames": found["action"].count}
    return _sign(dataclasses.replace(facts, **found), STORED, [origin])


def merge(tags: Sequence[norm_stats.Tag]) -> norm_stats.Tag:
    """Joins tags of which only the statistics are at hand, as released: quantiles become averages weighted by count.

    Extremes, means and deviations stay exact; the provenance says that quantiles do not. Facts are the first tag's.

    Raises:
      ValueError: fewer than two tags, one without count, or channels that differ.
    """
    if len(tags) < 2:
        raise ValueError(f"merge: {len(tags)} tags, expected at least 2.")
    found: dict[str, Any] = {}
    for kind in ("action", "state"):
        parts = [getattr(tag, kind) for tag in tags]
        if any(part is None for part in parts):
            raise ValueError(f"merge: {parts.count(None)} of {len(parts)} tags have no {kind} statistics.")
        found[kind] = norm_stats.merge(parts)
    origins = [origin for tag in tags for origin in (tag.provenance or {}).get("datasets", [{"name": "unknown"}])]
    return _sign(dataclasses.replace(tags[0], **found), AVERAGED, origins)


def _sign(tag: norm_stats.Tag, quantiles: str, datasets: Sequence[Mapping[str, Any]]) -> norm_stats.Tag:
    provenance = {"quantiles": quantiles, "datasets": list(datasets), "digest": norm_stats.digest(tag)}
    return dataclasses.replace(tag, provenance=provenance)


def intact(tag: norm_stats.Tag) -> bool | None:
    """Says whether a tag is as it was computed; None where it has no digest of ours (released files)."""
    recorded = (tag.provenance or {}).get("digest")
    return None if recorded is None else recorded == norm_stats.digest(tag)


def measure_sources(
    sources: Sequence[EpisodeSource],
    facts: norm_stats.Tag,
    progress: Callable[[int, int], None] = table.silent,
) -> norm_stats.Tag:
    """Reads sources one after another, calling `progress` with (datasets read, all), and measures them."""
    datasets = []
    for source in sources:
        datasets.append(read(source))
        progress(len(datasets), len(sources))
    return measure(datasets, facts)
