"""Depth maps: reading them from files, and the released way to the codec's input (`io.md` 6.1 step 2)."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from molmoact2_jax.data import depth

KINDS = ("disparity", "metric")
SUFFIXES = (".npy", ".png")


NETWORK_SIZE, NETWORK_STEP = 518, 14  # pixels: the shorter side that Depth Anything sees, and what sides divide by
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB


class Maps(Protocol):
    """Depth maps by the dataset's own number of the episode."""

    def __call__(self, episode: int, frames: Sequence[int]) -> Sequence[np.ndarray | None]:
        """Returns one map [H, W] per frame, None where there cannot be one."""


@dataclasses.dataclass(frozen=True)
class MapFiles:
    """Depth maps in files: `episode_000003.npy` [T, H, W], or `episode_000003/000017.png` (or `.npy`) per frame."""

    root: pathlib.Path

    def __call__(self, episode: int, frames: Sequence[int]) -> list[np.ndarray]:
        name = f"episode_{episode:06}"
        stacked = self.root / f"{name}.npy"
        if stacked.exists():
            return self._rows(stacked, frames)
        return [read(self._file(name, frame)) for frame in frames]

    def _rows(self, path: pathlib.Path, frames: Sequence[int]) -> list[np.ndarray]:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.ndim != 3 or len(values) <= max(frames):
            raise ValueError(f"{path}: shape {list(values.shape)}, expected [T, H, W] with T > {max(frames)}.")
        return [np.asarray(values[frame]) for frame in frames]

    def _file(self, name: str, frame: int) -> pathlib.Path:
        places = [self.root / name / f"{frame:06}{suffix}" for suffix in SUFFIXES]
        found = next((path for path in places if path.exists()), None)
        if found is None:
            raise FileNotFoundError(
                f"{self.root}: no depth map of {name}, frame {frame}, expected {name}.npy or {name}/{frame:06}.png."
            )
        return found


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


def network_input(picture: np.ndarray) -> np.ndarray:
    """Brings a picture u8[H, W, 3], RGB, to what Depth Anything sees, f32[h, w, 3] (`io.md` 6.1 step 1)."""
    import cv2

    scale = max(NETWORK_SIZE / side for side in picture.shape[:2])
    height, width = (_network_side(scale * side) for side in picture.shape[:2])
    resized = cv2.resize(picture / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    return ((resized - MEAN) / DEVIATION).astype(np.float32)


def _network_side(side: float) -> int:
    steps = round(side / NETWORK_STEP)
    return (steps if steps * NETWORK_STEP >= NETWORK_SIZE else math.ceil(side / NETWORK_STEP)) * NETWORK_STEP


def read(path: pathlib.Path) -> np.ndarray:
    """Reads one depth map [H, W]: a `.npy` file without pickles, or a `.png` of one channel, 8 or 16 bits.

    Raises:
      ValueError: another suffix or shape.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"depth_maps.read: {path}, expected one of {SUFFIXES}.")
    values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    if values.ndim != 2:
        raise ValueError(f"depth_maps.read: {path} has shape {list(values.shape)}, expected [H, W], one channel.")
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
