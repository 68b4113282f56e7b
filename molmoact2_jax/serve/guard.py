"""Limits of one robot, taken from its demonstrations: what may go into a policy, and what may come out of it.

Nothing here is a constant of the library: every bound is a statistic of the checkpoint, so that the demonstrations
themselves never break one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from molmoact2_jax.data import norm_stats

ACTION_MODES = ("off", "warn", "clamp")
STATE_MODES = ("off", "warn", "refuse")
GRIPPER_SLACK = 0.1  # of a gripper's range: its raw regression overshoots the recorded ends, and hardware stops there
_ROUNDING = 1e-6  # of a channel's largest value: statistics are float64, actions float32


class StateRangeError(ValueError):
    """A state is far outside what the demonstrations show: units, order or signs of the joints are other ones."""


class ActionError(ValueError):
    """The model's actions are not finite; nothing may stand in for them."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a guard does.

    Attributes:
      actions: "off"; "warn" counts broken limits and changes nothing; "clamp" also moves what broke one onto it.
      states: "off"; "warn" counts states out of range; "refuse" raises.
      margin: how far past its 1st and 99th percentile a state may be, as a part of the distance between them.
    """

    actions: str = "clamp"
    states: str = "warn"
    margin: float = 0.5

    def __post_init__(self) -> None:
        for name, allowed in (("actions", ACTION_MODES), ("states", STATE_MODES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"guard {name}: {getattr(self, name)!r}, expected one of {allowed}.")
        if not 0 <= self.margin < np.inf:
            raise ValueError(f"guard margin: {self.margin}, expected a finite number that is not negative.")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the actions of one robot, f64[D] each, in the units and signs that the robot is sent.

    Attributes:
      names: one word per channel.
      low, high: smallest and largest action; infinite where the statistics do not say.
      step: largest change between neighbouring actions; infinite for grippers, which open and close at once.
      gripper: bool[D].
      step_source: "max_step", recorded with the statistics, or "range", the distance from low to high.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    gripper: np.ndarray
    step_source: str

    @property
    def rounding(self) -> np.ndarray:
        """How far past a bound a value may be by rounding alone, f64[D]."""
        ends = np.maximum(np.abs(self.low), np.abs(self.high))
        return _ROUNDING * np.where(np.isfinite(ends), ends, 0)


@dataclasses.dataclass
class Counts:
    """How often limits were broken, by channel: of one answer, or added up.

    Attributes:
      out_of_range: actions outside [low, high].
      jumps: changes between neighbouring actions, after clamping, above `step`.
      changed: numbers that were replaced by a limit.
      state: states out of range.
    """

    out_of_range: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    jumps: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    changed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    state: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Counts) -> None:
        """Adds what another counted."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).update(getattr(other, field.name))

    def to_json(self) -> dict[str, dict[str, int]]:
        """Returns the numbers that are not 0, by kind and channel."""
        return {field.name: dict(getattr(self, field.name)) for field in dataclasses.fields(self)}


def channel_names(stats: norm_stats.TagStats) -> tuple[str, ...]:
    """Returns one word per channel: its name, or its number where it has none."""
    return stats.names or tuple(map(str, range(stats.width)))


def limits(tag: norm_stats.Tag) -> Limits:
    """Derives the bounds of a robot's actions from its statistics.

    `min` and `max` bound the range, `max_step` the change; percentiles do not, since one demonstrated action in fifty
    lies outside them. Grippers (by name, or not normalised) get some slack and no bound on their change.

    Raises:
      ValueError: the tag has no action statistics, or `max_step` is negative.
    """
    if tag.action is None:
        raise ValueError("guard: the robot has no action_stats, expected some to take limits from.")
    stats, width = tag.action, tag.action.width
    names = channel_names(stats)
    mask = np.asarray(stats.mask or (True,) * width)
    gripper = ~mask | np.array(["gripper" in name.lower() for name in names], bool)
    low = np.asarray(stats.min or (-np.inf,) * width, np.float64)
    high = np.asarray(stats.max or (np.inf,) * width, np.float64)
    slack = np.zeros(width)
    slack[gripper] = GRIPPER_SLACK * (high - low)[gripper]
    step, source = _steps(stats, high - low)
    low, high = _robot_side(tag, low - slack, high + slack)
    return Limits(names, low, high, np.where(gripper, np.inf, step), gripper, source)


def _steps(stats: norm_stats.TagStats, span: np.ndarray) -> tuple[np.ndarray, str]:
    if stats.max_step is None:
        return span, "range"
    step = np.asarray(stats.max_step, np.float64)
    if not (step >= 0).all():
        raise ValueError(
            f"action_stats.max_step: {step.tolist()}, expected numbers that are not negative. "
            "Compute the statistics again."
        )
    return step, "max_step"


def _robot_side(tag: norm_stats.Tag, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns bounds of the data's joint convention into the arm's, as `normalize.unnormalize` turns actions."""
    if tag.joint_signs is None or tag.joint_offsets is None:
        return low, high
    count = len(tag.joint_signs)
    ends = np.stack([low, high])
    ends[:, :count] = np.asarray(tag.joint_signs) * (ends[:, :count] - np.asarray(tag.joint_offsets))
    return ends.min(axis=0), ends.max(axis=0)


def release(actions: np.ndarray, bounds: Limits, mode: str) -> tuple[np.ndarray, Counts]:
    """Checks a chunk before it is sent to the robot.

    Values are brought into range first and then, from step to step, within the largest change of the action sent
    before; so what a robot holds when a chunk ends has passed both. Values that break nothing keep their bits.

    Args:
      actions: f32[T, D], robot units.
      bounds: of the same channels.
      mode: of `ACTION_MODES`.

    Returns:
      f32[T, D] (the given array unless something was changed), and what was counted.

    Raises:
      ActionError: an action is not finite, in every mode.
    """
    _check_finite(actions, bounds.names)
    counts = Counts()
    if mode == "off":
        return actions, counts
    inside = _into_range(actions, bounds)
    _count(counts.out_of_range, inside != actions, bounds.names)
    most = bounds.step + 2 * bounds.rounding
    _count(counts.jumps, np.abs(np.diff(inside.astype(np.float64), axis=0)) > most, bounds.names)
    if mode == "warn" or not (counts.out_of_range or counts.jumps):
        return actions, counts
    sent = _limit_steps(inside, bounds.step, most)
    _count(counts.changed, sent != actions, bounds.names)
    return sent, counts


def _check_finite(actions: np.ndarray, names: Sequence[str]) -> None:
    steps, channels = np.nonzero(~np.isfinite(actions))
    if steps.size:
        bad = sorted({names[i] for i in channels.tolist()})
        raise ActionError(
            f"actions: not finite in channels {bad}, first at step {steps.min()}. The weights or the observation are "
            "damaged; nothing was sent. Check the checkpoint, or serve it with --dtype float32."
        )


def _into_range(actions: np.ndarray, bounds: Limits) -> np.ndarray:
    wide = actions.astype(np.float64)
    above, below = wide > bounds.high + bounds.rounding, wide < bounds.low - bounds.rounding
    return np.where(above, bounds.high, np.where(below, bounds.low, wide)).astype(actions.dtype)


def _limit_steps(inside: np.ndarray, step: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Moves each action within `step` of the one sent before, where it is further than `most`."""
    sent = inside.copy()
    for t in range(1, len(sent)):
        change = inside[t].astype(np.float64) - sent[t - 1]
        limited = sent[t - 1] + np.clip(change, -step, step)
        sent[t] = np.where(np.abs(change) > most, limited, inside[t])
    return sent


def _count(counter: collections.Counter[str], broken: np.ndarray, names: Sequence[str]) -> None:
    sums = broken.sum(axis=0)
    counter.update({names[i]: int(sums[i]) for i in np.flatnonzero(sums).tolist()})


def state_bounds(tag: norm_stats.Tag, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and largest state that passes, f64[D] each, in the robot's units and signs.

    They lie `margin` past the 1st and 99th percentile, and never inside the recorded extremes. A channel that never
    moved has no bounds: the model does not see it. Without statistics of states the arrays are empty.
    """
    if tag.state is None:
        return np.zeros(0), np.zeros(0)
    stats, width = tag.state, tag.state.width
    low, high = (np.asarray(v if v else (end,) * width) for v, end in ((stats.q01, np.inf), (stats.q99, -np.inf)))
    reach = margin * np.where(np.isfinite(high - low), high - low, 0)
    least, most = np.asarray(stats.min or low), np.asarray(stats.max or high)
    low, high = np.minimum(low - reach, least), np.maximum(high + reach, most)
    free = (least == most) | (low > high)
    return _robot_side(tag, np.where(free, -np.inf, low), np.where(free, np.inf, high))


def check_state(state: np.ndarray, tag: norm_stats.Tag, options: Options) -> Counts:
    """Compares a state with what the demonstrations show.

    Args:
      state: f32[D], finite, robot units; its width was checked (`observe.check_state`).
      tag: the robot.
      options: mode and margin.

    Returns:
      The channels that are out of range.

    Raises:
      StateRangeError: some are, and the mode is "refuse"; names each with its value and bounds.
    """
    counts = Counts()
    if options.states == "off" or tag.state is None:
        return counts
    names, (low, high) = channel_names(tag.state), state_bounds(tag, options.margin)
    slack = _ROUNDING * np.nan_to_num(np.maximum(np.abs(low), np.abs(high)), posinf=0)
    wide = state.astype(np.float64)
    bad = np.flatnonzero((wide < low - slack) | (wide > high + slack)).tolist()
    counts.state.update(names[i] for i in bad)
    if bad and options.states == "refuse":
        said = ", ".join(f"{names[i]} = {wide[i]:.4g} (expected {low[i]:.4g} to {high[i]:.4g})" for i in bad)
        raise StateRangeError(
            f"state: out of the checkpoint's range: {said}. Check units, order and signs of the joints."
        )
    return counts


def check_cameras(num_images: int, cameras: Sequence[str]) -> None:
    """Refuses another number of pictures than the robot has cameras.

    Raises:
      ValueError: lists the cameras in their order.
    """
    if num_images != len(cameras):
        raise ValueError(
            f"images: {num_images}, expected {len(cameras)} ({', '.join(cameras)}). "
            "Send one picture per camera, in this order."
        )
