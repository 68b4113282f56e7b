"""Checks of numbers and texts of one episode: finite, in time, in order, smooth, told in words. No picture is read."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np

from molmoact2_jax.data.findings import Finding
from molmoact2_jax.data.source import EpisodeSource, SampleError

TIME_TOLERANCE = 1e-3  # seconds that a timestamp may be off before decoders find no frame (`io.md` 8.1)
RATE_TOLERANCE = 0.01  # of the declared rate
LARGEST = 1e6  # no robot's state or action is beyond, in any unit
JUMP = 20.0  # times the 95th percentile of the steps of a channel
MAX_CHANNELS = 32  # width of the expert
WHOLE_TURNS = (2 * math.pi, 360.0)  # rad, degrees


@dataclasses.dataclass(frozen=True)
class Scales:
    """What is usual in a dataset, per channel of state and action, robot units.

    Attributes:
      steps: {kind: f64[C]}, 95th percentile of the change from frame to frame; infinite where jumps are usual.
      spans: {kind: f64[C]}, max - min.
    """

    steps: dict[str, np.ndarray]
    spans: dict[str, np.ndarray]


def scales(source: EpisodeSource, episodes: int = 200) -> Scales:
    """Measures up to `episodes` episodes, spread over the dataset."""
    chosen = np.unique(np.linspace(0, max(source.num_episodes - 1, 0), episodes).astype(int))
    steps, spans = {}, {}
    for kind in ("state", "action"):
        parts = [_finite(source.column(kind, int(e))) for e in chosen if source.num_episodes]
        parts = [part for part in parts if len(part) > 1]
        width = source.column_shapes()[kind][0]
        if not parts:
            steps[kind], spans[kind] = np.full(width, np.inf), np.zeros(width)
            continue
        changes = np.concatenate([np.abs(np.diff(part, axis=0)) for part in parts])
        values = np.concatenate(parts)
        usual = np.quantile(changes, 0.95, axis=0)
        steps[kind] = np.where(usual > 0, usual, np.inf)
        spans[kind] = values.max(axis=0) - values.min(axis=0)
    return Scales(steps, spans)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values).all(axis=1)]


def dataset(source: EpisodeSource) -> Iterator[Finding]:
    """Checks what is said once for the whole dataset."""
    if not math.isfinite(source.fps) or source.fps <= 0:
        yield Finding("error", "rate", f"{source.fps} frames per second, expected a positive number")
    if not source.cameras:
        yield Finding("error", "cameras", "no camera")
    if not source.num_frames:
        yield Finding("error", "empty", f"no frame in {source.num_episodes} episodes")
    for kind, names in (("state", source.state_names), ("action", source.action_names)):
        (width,) = source.column_shapes()[kind]
        if width != len(names):
            yield Finding("error", "schema", f"{kind} has {width} channels and {len(names)} names {list(names)}")
        if not 0 < width <= MAX_CHANNELS:
            yield Finding("error", "schema", f"{kind} has {width} channels, expected 1 to {MAX_CHANNELS}")
        if len(set(names)) != len(names):
            yield Finding("warning", "schema", f"{kind} channels have names that repeat: {list(names)}")
    numbers, repeats = np.unique(source.episode_ids, return_counts=True)
    for number in numbers[repeats > 1]:
        yield Finding("error", "duplicate index", "the number of the episode repeats", int(number))
    yield from _constant(source)


def _constant(source: EpisodeSource) -> Iterator[Finding]:
    if not source.num_frames:
        return
    for kind, values in source.columns(("state", "action")).items():
        still = np.flatnonzero(values.min(axis=0) == values.max(axis=0))
        names = getattr(source, f"{kind}_names")
        if len(still):
            listed = ", ".join(f"{c} ({names[c]})" for c in still)
            yield Finding("note", "constant", f"{kind} channels {listed} never change")


def episode(source: EpisodeSource, position: int, usual: Scales, horizon: int) -> Iterator[Finding]:
    """Checks the columns and texts of one episode.

    Args:
      source: the dataset.
      position: of the episode in it.
      usual: of the dataset.
      horizon: frames of an action chunk; a bad action spoils all chunks that hold it.
    """
    number, length = int(source.episode_ids[position]), int(source.episode_lengths[position])
    if not length:
        if not any(problem.episode == number for problem in source.problems):
            yield Finding("error", "empty", "the episode has no frames", number)
        return
    if length < 2:
        yield Finding("warning", "length", "a single frame", number)
    elif length < horizon:
        yield Finding("note", "length", f"{length} frames, shorter than a chunk of {horizon}", number)
    yield from _numbers(source, position, usual, horizon)
    yield from timestamps(source.column("timestamp", position), source.fps, number)
    yield from _order(source, position)
    yield from language(source, position)


def _numbers(source: EpisodeSource, position: int, usual: Scales, horizon: int) -> Iterator[Finding]:
    number = int(source.episode_ids[position])
    still = []
    for kind, names in (("state", source.state_names), ("action", source.action_names)):
        values = np.asarray(source.column(kind, position), np.float64)
        yield from not_finite(values, kind, number, horizon if kind == "action" else 1)
        with np.errstate(invalid="ignore"):
            yield from jumps(values, kind, names, usual, number)
        still.append(len(values) > 1 and bool((values == values[0]).all()))
    if all(still):
        yield Finding("warning", "idle", "neither state nor action ever changes", number)


def not_finite(values: np.ndarray, kind: str, number: int, reach: int) -> Iterator[Finding]:
    """Finds NaN, infinities and absurd sizes in f64[L, C]; names every frame whose next `reach` rows hold one."""
    bad = ~(np.abs(values) <= LARGEST)
    rows = np.flatnonzero(bad.any(axis=1))
    spoiled: dict[int, int] = {}
    for row in rows.tolist():
        spoiled |= {frame: row for frame in range(max(0, row - reach + 1), row + 1) if frame not in spoiled}
    for frame, row in spoiled.items():
        channel = int(np.flatnonzero(bad[row])[0])
        value = values[row, channel]
        check = "extreme value" if np.isfinite(value) else "not finite"
        distance = f" {row - frame} frames later" if row > frame else ""
        yield Finding("error", check, f"{kind} channel {channel} is {value:g}{distance}", number, frame)


def jumps(values: np.ndarray, kind: str, names: Sequence[str], usual: Scales, number: int) -> Iterator[Finding]:
    """Finds changes from one frame to the next that no robot makes; a whole turn is an angle that wraps."""
    changes = np.abs(np.diff(values, axis=0))
    bold = changes > np.maximum(JUMP * usual.steps[kind], 0.25 * usual.spans[kind])
    for frame, channel in np.argwhere(bold).tolist():
        if "gripper" in names[channel].lower():
            continue
        size, what = changes[frame, channel], f"{kind} channel {channel} ({names[channel]})"
        if any(abs(size / turn - 1) < 0.1 for turn in WHOLE_TURNS):
            yield Finding("note", "angle wraps", f"{what} changes by a whole turn at once", number, frame + 1)
        else:
            message = f"{what} changes by {size:.4g} at once, usually by at most {usual.steps[kind][channel]:.4g}"
            yield Finding("warning", "jump", message, number, frame + 1)


def timestamps(times: np.ndarray, fps: float, number: int) -> Iterator[Finding]:
    """Checks seconds, [L], against the declared rate: one rate throughout, and no frame out of step."""
    times = np.asarray(times, np.float64)
    if len(times) < 2 or not fps > 0:
        return
    steps = np.diff(times)
    rate = 1 / np.median(steps) if np.median(steps) > 0 else math.inf
    if not abs(rate / fps - 1) <= RATE_TOLERANCE:
        yield Finding("error", "rate", f"recorded at {rate:.4g} frames per second, declared are {fps:g}", number)
        return
    # float32 seconds lose a millisecond after some hours.
    tolerance = TIME_TOLERANCE + float(np.spacing(np.float32(np.abs(times).max(initial=0))))
    late = times - np.arange(len(times)) / fps
    wrong = _out_of_step(late, tolerance)
    if not wrong and abs(late[0]) > tolerance:
        yield Finding("error", "timestamp", f"starts at {times[0]:.4f} s, expected 0", number)
    elif not wrong and np.abs(late - late[0]).max() > tolerance:
        yield Finding("warning", "rate", f"drifts by {late[-1] - late[0]:.3f} s in {len(times)} frames", number)
    for frame in wrong:
        message = f"{times[frame]:.4f} s, {times[frame] - times[frame - 1]:.4f} s after the frame before it"
        yield Finding("error", "timestamp", f"{message}, expected {1 / fps:.4f}", number, frame)


def _out_of_step(late: np.ndarray, tolerance: float) -> list[int]:
    """Returns the frames whose distance from the one before is off; not those that only return to the old line."""
    wrong: list[int] = []
    for frame in (np.flatnonzero(~(np.abs(np.diff(late)) <= tolerance)) + 1).tolist():
        returned = bool(wrong) and wrong[-1] == frame - 1 and abs(late[frame] - late[frame - 2]) <= tolerance
        if not returned:
            wrong.append(frame)
    return wrong


def _order(source: EpisodeSource, position: int) -> Iterator[Finding]:
    """Checks the dataset's own counters, where it stores them."""
    number, length = int(source.episode_ids[position]), int(source.episode_lengths[position])
    shapes = source.column_shapes()
    if "frame_index" in shapes:
        counted = np.asarray(source.column("frame_index", position)).reshape(-1)
        for frame in np.flatnonzero(counted != np.arange(length)).tolist():
            yield Finding("error", "frame index", f"frame_index is {counted[frame]}", number, frame)
    if "index" in shapes:
        index = np.asarray(source.column("index", position)).reshape(-1)
        first = {value: frame for frame, value in reversed(list(enumerate(index.tolist())))}
        for frame, value in enumerate(index.tolist()):
            if first[value] != frame:
                message = f"index {value} is also that of frame {first[value]}"
                yield Finding("error", "duplicate index", message, number, frame)


def indices(source: EpisodeSource) -> Iterator[Finding]:
    """Finds episodes that count over the same `index` as one before them."""
    if "index" not in source.column_shapes():
        return
    spans = []
    for position in range(source.num_episodes):
        index = np.asarray(source.column("index", position)).reshape(-1)
        if len(index):
            spans.append((int(index.min()), int(index.max()), int(source.episode_ids[position])))
    for before, after in zip(sorted(spans), sorted(spans)[1:]):
        if after[0] <= before[1]:
            message = f"index {after[0]} to {after[1]} overlaps that of episode {before[2]}"
            yield Finding("error", "duplicate index", message, after[2])


def language(source: EpisodeSource, position: int) -> Iterator[Finding]:
    """Checks that every frame has an instruction that can be read."""
    number = int(source.episode_ids[position])
    for frame in range(int(source.episode_lengths[position])):
        try:
            if not source.task(position, frame).strip():
                yield Finding("error", "no language", "no instruction", number, frame)
        except SampleError as error:
            yield Finding("error", "language", error.reason, number, frame)


def fingerprint(source: EpisodeSource, position: int) -> str:
    """Returns a digest of the numbers of an episode, equal for copies."""
    found = hashlib.sha256()
    for kind in ("state", "action"):
        values = np.ascontiguousarray(source.column(kind, position))
        found.update(repr((values.shape, values.dtype.str)).encode() + values.tobytes())
    return found.hexdigest()


def duplicates(source: EpisodeSource, fingerprints: Sequence[str]) -> Iterator[Finding]:
    """Finds episodes that are copies of earlier ones; `fingerprints` has one per episode, "" for empty ones."""
    first: dict[str, int] = {}
    for position, mark in enumerate(fingerprints):
        if not mark:
            continue
        if mark in first:
            copied = int(source.episode_ids[first[mark]])
            message = f"the same states and actions as episode {copied}"
            yield Finding("warning", "duplicate episode", message, int(source.episode_ids[position]))
        else:
            first[mark] = position
