"""Depth maps: reading them from files, and the released way to the codec's input (`io.md` 6.1 step 2)."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from molmoact2_jax.data import depth

KINDS = ("disparity", "metric")
SUFFIXES = (".npy", ".png")


def prepare(values: np.ndarray, kind: str = "disparity") -> np.ndarray:
    """Brings a depth map to what the codec was trained on: near is bright, each frame spans its own range.

    Args:
      values: [H, W], any real dtype. Disparity grows towards the camera (Depth Anything); metric depth grows away from
        it, in any unit, and is inverted. Metric zeros, negatives and non-finite values count as infinitely far.
      kind: "disparity" or "metric".

    Returns:
      f32[320, 320, 1] in [-1, 1], in steps of 2 / 255. A flat map is all -1.

    Raises:
      ValueError: another shape or kind, a non-finite disparity, or no valid metric value at all.
    """
    near = _disparity(np.asarray(values), kind).astype(np.float32)
    low, high = near.min(), near.max()
    levels = (255 * (near - low) / (high - low + 1e-8)).astype(np.uint8)
    sampled = levels[np.ix_(_sampled(levels.shape[0]), _sampled(levels.shape[1]))]
    unit = sampled.astype(np.float32) / np.float32(255)
    return ((unit - np.float32(0.5)) / np.float32(0.5))[..., None]


def read(path: pathlib.Path) -> np.ndarray:
    """Reads one depth map, or several stacked in one file.

    Args:
      path: `.npy` (no pickles), [H, W] or [T, H, W]; or a `.png` of one channel, 8 or 16 bits.

    Raises:
      ValueError: another suffix or shape.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"depth_maps.read: {path}, expected one of {SUFFIXES}.")
    values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    if values.ndim not in ((2, 3) if path.suffix == ".npy" else (2,)):
        raise ValueError(
            f"depth_maps.read: {path} has shape {list(values.shape)}, expected [H, W]"
            f"{' or [T, H, W]' if path.suffix == '.npy' else '. Save depth as a picture of one channel'}."
        )
    return values


def _disparity(values: np.ndarray, kind: str) -> np.ndarray:
    if kind not in KINDS:
        raise ValueError(f"depth_maps.prepare: kind is {kind!r}, expected one of {KINDS}.")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"depth_maps.prepare: depth is {list(values.shape)}, expected [H, W].")
    if kind == "disparity":
        if not np.isfinite(values).all():
            raise ValueError("depth_maps.prepare: disparity has non-finite values, expected none. Is it metric depth?")
        return values
    valid = np.isfinite(values) & (values > 0)
    if not valid.any():
        raise ValueError("depth_maps.prepare: metric depth has no finite value above 0, expected some.")
    return np.where(valid, 1 / np.where(valid, values, 1), 0)


def _sampled(length: int) -> np.ndarray:
    """Returns the source index of each of the 320 rows; OpenCV's INTER_NEAREST."""
    return np.minimum(np.floor(np.arange(depth.SIZE) * (1 / (depth.SIZE / length))).astype(int), length - 1)
