"""Robot units to the model's range and back, and states to bins. All arithmetic is float32, as released."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np

from molmoact2_jax.data import norm_stats

logger = logging.getLogger(__name__)

BOUNDS = {"min_max": ("min", "max"), "q01_q99": ("q01", "q99"), "q10_q90": ("q10", "q90")}
_FLOOR = np.float32(1e-6)  # smallest span or deviation that is divided by
_DEAD = 1e-3  # a scale shorter than this part of the channel's range is taken for a mistake


class DeadScaleError(ValueError):
    """A channel moves, but its statistics say that it hardly does: dividing by that scale would blow it up."""


def normalize(values: np.ndarray, stats: norm_stats.TagStats | None, mode: str) -> np.ndarray:
    """Maps robot units to the model's range.

    Args:
      values: f32[..., D], robot units.
      stats: of the D channels, or None for values that stay as they are.
      mode: of `norm_stats.MODES`. Modes with bounds map them to [-1, 1] and clip; "mean_std" does not clip.

    Returns:
      f32[..., D]. Masked-out channels pass through raw and unclipped; channels with min == max become 0; NaN stays.

    Raises:
      ValueError: the last axis is not D.
    """
    values = np.asarray(values, np.float32)
    if stats is None or mode == "none":
        return values
    _check_width(values, stats)
    result = _to_range(values, stats, mode)
    if stats.mask is not None:
        result = np.where(stats.mask, result, values)
    if stats.min is not None and stats.max is not None:
        result = np.where(_column(stats.min) == _column(stats.max), np.float32(0), result)
    return result


def _to_range(values: np.ndarray, stats: norm_stats.TagStats, mode: str) -> np.ndarray:
    if mode == "mean_std":
        return (values - _column(stats.mean)) / np.maximum(_column(stats.std), _FLOOR)
    low, high = (_column(getattr(stats, bound)) for bound in BOUNDS[mode])
    return np.clip(2 * (values - low) / np.maximum(high - low, _FLOOR) - 1, -1, 1)


def _column(values: norm_stats.Floats | None) -> np.ndarray:
    return np.asarray(values, np.float32)


def _check_width(values: np.ndarray, stats: norm_stats.TagStats) -> None:
    if values.shape[-1:] != (stats.width,):
        raise ValueError(
            f"values: shape {values.shape}, expected {stats.width} channels"
            f"{f' {list(stats.names)}' if stats.names else ''}. Check the robot's layout and the norm_tag."
        )


class Inverse(NamedTuple):
    """Arrays that undo the normalisation of N channels; a tree of arrays, so a compiled program takes it as argument.

    With c = clip(y, -bound, bound) the result is signs * ((c + shift) * scale + offset - joint_offsets) where `mask`,
    and signs * (c - joint_offsets) elsewhere. Channels past the robot's pass through.
    """

    bound: np.ndarray  # f32[], infinite in modes that do not clip
    shift: np.ndarray  # f32[]
    scale: np.ndarray  # f32[N]
    offset: np.ndarray  # f32[N]
    mask: np.ndarray  # bool[N]
    signs: np.ndarray  # f32[N]
    joint_offsets: np.ndarray  # f32[N]


def inverse(tag: norm_stats.Tag, mode: str, width: int = 32) -> Inverse:
    """Returns what turns a tag's model actions into robot actions.

    Args:
      tag: its action statistics may be None, which leaves values as they are.
      mode: of `norm_stats.MODES`.
      width: channels to pad to.

    Raises:
      ValueError: the robot has more channels than `width`.
    """
    stats = tag.action or norm_stats.TagStats()
    if stats.width > width:
        raise ValueError(f"actions: {stats.width} channels, expected at most {width}, the width of the checkpoint.")
    shift, scale, offset = _affine(stats, mode)
    mask = np.asarray(stats.mask or (True,) * len(scale), bool)[: len(scale)]
    bounded = mode in BOUNDS and tag.action is not None
    return Inverse(
        bound=np.asarray(1 if bounded else np.inf, np.float32),
        shift=shift,
        scale=_padded(scale, width, 1),
        offset=_padded(offset, width, 0),
        mask=np.pad(mask, (0, width - len(mask))),
        signs=_padded(_column(tag.joint_signs or ()), width, 1),
        joint_offsets=_padded(_column(tag.joint_offsets or ()), width, 0),
    )


def _affine(stats: norm_stats.TagStats, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns shift, scale, offset of x = (y + shift) * scale + offset; halving the span first is exact."""
    if mode == "none" or stats.width == 0:
        return np.zeros((), np.float32), _column(()), _column(())
    if mode == "mean_std":
        return np.zeros((), np.float32), _column(stats.std), _column(stats.mean)
    low, high = (_column(getattr(stats, bound)) for bound in BOUNDS[mode])
    return np.ones((), np.float32), (high - low) / 2, low


def _padded(values: np.ndarray, width: int, fill: float) -> np.ndarray:
    return np.pad(values, (0, width - len(values)), constant_values=fill)


def unnormalize(values: Any, undo: Inverse) -> Any:
    """Maps the model's range to robot units.

    Args:
      values: f32[..., N], an array of NumPy or of any library with the array interface (traced values too).
      undo: `inverse` with N channels.

    Returns:
      f32[..., N], of the same library. Modes with bounds clip to [-1, 1] first, masked-out channels too.
    """
    xp = values.__array_namespace__()
    clipped = xp.clip(values, -undo.bound, undo.bound)
    result = xp.where(undo.mask, (clipped + undo.shift) * undo.scale + undo.offset, clipped)
    return undo.signs * (result - undo.joint_offsets)


def to_model_joints(values: np.ndarray, tag: norm_stats.Tag) -> np.ndarray:
    """Maps states or actions f32[..., D] from the arm's joint convention to the training data's, before normalising.

    The first channels become signs * value + offset (SO-100/101 arms of newer LeRobot: degrees); the rest, and all
    values of tags without a convention, stay.
    """
    values = np.array(values, np.float32)
    if tag.joint_signs is not None:
        count = len(tag.joint_signs)
        values[..., :count] = _column(tag.joint_signs) * values[..., :count] + _column(tag.joint_offsets)
    return values


def state_bins(values: np.ndarray, num_bins: int = 256) -> np.ndarray:
    """Returns i32, the bin of each normalised value: [-1, 1] over `num_bins`, halves to even, NaN in the middle."""
    finite = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    scaled = (np.clip(finite, -1, 1) + np.float32(1)) / np.float32(2) * np.float32(num_bins - 1)
    return np.clip(np.rint(scaled), 0, num_bins - 1).astype(np.int32)


def dead_scales(stats: norm_stats.TagStats, mode: str) -> tuple[str, ...]:
    """Describes the normalised channels that move (min != max) over far more than the scale they are divided by."""
    if mode in ("none", "min_max") or stats.min is None or stats.max is None:
        return ()
    if mode == "mean_std":
        spans, word = np.asarray(stats.std, np.float64), "std"
    else:
        low, high = BOUNDS[mode]
        spans, word = np.subtract(getattr(stats, high), getattr(stats, low)), f"{high} - {low}"
    ranges = np.subtract(stats.max, stats.min)
    mask = np.asarray(stats.mask if stats.mask is not None else (True,) * stats.width)
    dead = mask & (ranges > 0) & (spans < np.maximum(_DEAD * ranges, float(_FLOOR)))
    return tuple(
        f"channel {stats.name(i)}: {word} = {spans[i]:.3g} but it moves from {stats.min[i]:.4g} to {stats.max[i]:.4g}"
        for i in np.flatnonzero(dead).tolist()
    )


def check_scales(stats: norm_stats.TagStats, mode: str, where: str, *, allow_dead: bool = False) -> None:
    """Refuses dead scales, or logs them where they are allowed (released checkpoints run as they are).

    Raises:
      DeadScaleError: names each channel and its numbers.
    """
    found = dead_scales(stats, mode)
    if not found:
        return
    message = f"{where}: dead scale in {'; '.join(found)}"
    if not allow_dead:
        raise DeadScaleError(f"{message}. Mask the channel, widen its bounds, or allow dead scales.")
    logger.warning("%s. Such channels saturate at the ends of their range.", message)
