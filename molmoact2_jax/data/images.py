"""Pictures to what the image encoder reads: uint8 RGB, the released resize to the bit, patches, pooling windows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from molmoact2_jax import config

_ROWS = 32  # of the result at a time: their float64 terms stay in the second-level cache


@dataclasses.dataclass(frozen=True)
class Crops:
    """One picture, ready for the encoder.

    Attributes:
      pixels: u8[N, S, S, 3], the whole picture first, then its tiles in raster order.
      pooling: i32[F, W], for each image token the patches it pools (crop * patches + patch), -1 for none.
      grid: pooled rows and columns of the whole picture, then of its tiles (0, 0 without tiles).
    """

    pixels: np.ndarray
    pooling: np.ndarray
    grid: tuple[int, int, int, int]


def coerce(image: Any, where: str = "image") -> np.ndarray:
    """Returns u8[H, W, 3], RGB.

    Args:
      image: a PIL picture, or an array [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels and any number of
        leading axes of size 1. Integers are 0..255. Floats are 0..1 where none exceeds 1, else 0..255; both are
        truncated. Grey is repeated, alpha is dropped.
      where: what errors call it.

    Raises:
      ValueError: another shape or type, no pixels, NaN, or values out of range.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{where}: PIL mode {image.mode}, expected 8 bits per channel. Scale it to 0..255 first.")
        image = image.convert("RGB")
    pixels = _channels_last(np.asarray(image), where)
    return np.ascontiguousarray(_to_bytes(pixels, where))


def _channels_last(pixels: np.ndarray, where: str) -> np.ndarray:
    """Returns [H, W, 3] in the type given."""
    shape = pixels.shape
    while pixels.ndim > 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{where}: shape {shape}, expected [H, W, 3] (or [H, W], [3, H, W], RGBA). Pass one picture.")
    if pixels.size == 0:
        raise ValueError(f"{where}: shape {shape}, expected at least one pixel. Check the camera.")
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def _to_bytes(pixels: np.ndarray, where: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"{where}: dtype {pixels.dtype}, expected uint8, or float in 0..1 or 0..255.")
    low, high = pixels.min(), pixels.max()  # NaN anywhere makes both NaN
    if not (low >= 0 and high <= 255):
        raise ValueError(f"{where}: values {low} to {high}, expected 0..255 (or 0..1 as float). Scale it first.")
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)  # k / 255 * 255 is k again in float32, not in float64
        pixels = pixels * np.float32(255) if high <= 1 else pixels
    return pixels.astype(np.uint8)


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Stretches a picture: bilinear, half-pixel centres, no antialiasing, halves to even.

    Equal to the released processor to the bit. Its interpolation (PyTorch on one thread) adds the four weighted
    neighbours with fused multiply-adds in float32, in the order below; on several threads PyTorch blends rows
    after columns instead, which moves some 20 pixels of a picture by one level.

    Args:
      image: u8[H, W, 3].
      size: side, or rows and columns, of the result in pixels.

    Returns:
      u8[size, size, 3].
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image.copy()  # all weights are 0 or 1: the same pixels, a hundred times as fast
    rows, cols = _axis(image.shape[0], height, 1), _axis(image.shape[1], width, 3)
    flat = image.reshape(image.shape[0], -1)
    left, right = flat.take(cols.first, axis=1), flat.take(cols.second, axis=1)  # once per row of the picture
    result = np.empty((height, 3 * width), np.uint8)
    for start in range(0, height, _ROWS):
        part = slice(start, start + _ROWS)
        top, bottom = rows.first[part], rows.second[part]
        near, far = rows.near[part, None], rows.far[part, None]
        total = near * cols.far * right[top]
        total = _fused(near * cols.near, left[top], total)
        total = _fused(far * cols.near, left[bottom], total)
        total = _fused(far * cols.far, right[bottom], total)
        result[part] = np.rint(total, out=total)
    return result.reshape(height, width, 3)


def _fused(weight: np.ndarray, pixels: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns f32, weight * pixels + total with one rounding: the product of 24 and 8 bits is exact in float64."""
    return (weight.astype(np.float64) * pixels + total).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Neighbours of each output position along one axis and their float32 weights, repeated per channel."""

    first: np.ndarray
    second: np.ndarray
    near: np.ndarray
    far: np.ndarray


@functools.lru_cache(maxsize=128)
def _axis(size: int, out: int, channels: int) -> _Axis:
    scale = np.float64(np.float32(size) / np.float32(out))
    source = np.maximum((scale * (np.arange(out) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    first = source.astype(np.int64)
    far = np.repeat(source - first.astype(np.float32), channels)
    columns = (first[:, None] * channels + np.arange(channels)).ravel()
    following = (np.minimum(first + 1, size - 1)[:, None] * channels + np.arange(channels)).ravel()
    return _Axis(columns, following, np.float32(1) - far, far)


def patchify(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Cuts crops [N, S, S, 3] into rows [N, (S / patch)**2, patch * patch * 3]: raster order, then y, x, channel."""
    count, side = pixels.shape[0], pixels.shape[1] // patch
    blocks = pixels.reshape(count, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(count, side * side, patch * patch * 3)


@functools.lru_cache(maxsize=32)
def pooling_indices(grid: int, window: int) -> np.ndarray:
    """Returns i32[ceil(grid / window)**2, window**2], the patches of each window of one crop; -1 outside.

    The array is shared and read-only.
    """
    indices = _windows(np.arange(grid * grid, dtype=np.int32).reshape(grid, grid), window)
    indices.setflags(write=False)
    return indices


def _windows(patches: np.ndarray, window: int) -> np.ndarray:
    """Groups i32[rows, cols] of patch indices into i32[windows, window**2], padded with -1, mostly at the end."""
    padding = [(missing // 2, (missing + 1) // 2) for size in patches.shape for missing in [-size % window]]
    padded = np.pad(patches, padding, constant_values=-1)
    rows, cols = padded.shape[0] // window, padded.shape[1] // window
    return padded.reshape(rows, window, cols, window).transpose(0, 2, 1, 3).reshape(rows * cols, window * window)


def crops_of(image: np.ndarray, settings: config.ProcessorConfig) -> Crops:
    """Prepares u8[H, W, 3] as the checkpoint's processor does.

    Raises:
      ValueError: `settings.crop_mode` is unknown.
    """
    if settings.crop_mode == "resize":
        return _single_crop(image, settings)
    if settings.crop_mode == "overlap-and-resize-c2":
        return multi_crop(image, settings)
    raise ValueError(f"crop_mode: {settings.crop_mode!r}, expected 'resize' or 'overlap-and-resize-c2'.")


def layout(height: int, width: int, settings: config.ProcessorConfig) -> tuple[tuple[int, int, int, int], int]:
    """Returns the grid and the number of crops that `crops_of` makes of a picture of that size."""
    grid = settings.image_size // settings.patch_size
    pooled = -(-grid // settings.pooling)
    if settings.crop_mode == "resize":
        return (pooled, pooled, 0, 0), 1
    overlap = sum(settings.overlap_margins)
    margin, stride = overlap * settings.patch_size, (grid - overlap) * settings.patch_size
    tiles = _tiling(height - margin, width - margin, stride, settings.max_crops)
    rows, cols = (-(-(count * (grid - overlap) + overlap) // settings.pooling) for count in tiles)
    return (pooled, pooled, rows, cols), 1 + tiles[0] * tiles[1]


def _single_crop(image: np.ndarray, settings: config.ProcessorConfig) -> Crops:
    grid = settings.image_size // settings.patch_size
    pooled = -(-grid // settings.pooling)
    pixels = resize(image, settings.image_size)[None]
    return Crops(pixels, pooling_indices(grid, settings.pooling), (pooled, pooled, 0, 0))


def multi_crop(image: np.ndarray, settings: config.ProcessorConfig) -> Crops:
    """Prepares the whole picture and overlapping tiles of an enlarged one; a patch seen twice is pooled once."""
    whole = _single_crop(image, settings)
    side, patch = settings.image_size, settings.patch_size
    before, after = settings.overlap_margins
    stride, overlap = side - (before + after) * patch, (before + after) * patch
    rows, cols = _tiling(image.shape[0] - overlap, image.shape[1] - overlap, stride, settings.max_crops)
    large = resize(image, (rows * stride + overlap, cols * stride + overlap))
    views = np.lib.stride_tricks.sliding_window_view(large, (side, side), axis=(0, 1))[::stride, ::stride]
    tiles = views.transpose(0, 1, 3, 4, 2).reshape(rows * cols, side, side, 3)
    patches = _tile_patches(rows, cols, settings)
    pooled_rows, pooled_cols = (-(-size // settings.pooling) for size in patches.shape)
    pooling = np.concatenate([whole.pooling, _windows(patches, settings.pooling)])
    return Crops(np.concatenate([whole.pixels, tiles]), pooling, (*whole.grid[:2], pooled_rows, pooled_cols))


def _tile_patches(rows: int, cols: int, settings: config.ProcessorConfig) -> np.ndarray:
    """Returns i32[patch rows, patch columns] of the enlarged picture: which patch of which tile shows that place."""
    grid = settings.image_size // settings.patch_size
    before, after = settings.overlap_margins
    tile = np.arange(grid * grid, dtype=np.int32).reshape(grid, grid)

    def inner(index: int, count: int) -> slice:
        return slice(before * (index > 0), grid - after * (index < count - 1))

    return np.block(
        [
            [tile[inner(r, rows), inner(c, cols)] + grid * grid * (1 + r * cols + c) for c in range(cols)]
            for r in range(rows)
        ]
    )


def _tiling(height: int, width: int, stride: int, max_crops: int) -> tuple[int, int]:
    """Chooses rows and columns of tiles: the least enlargement that covers the picture, else the least shrinkage."""
    tilings = [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops + 1) if i * j <= max_crops]
    tilings.sort(key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))
    size = np.maximum(np.asarray([height, width], np.float32), np.float32(1))
    scales = (np.asarray(tilings, np.float32) * np.float32(stride) / size).min(axis=1)
    covering = np.where(scales < 1, np.float32(1e10), scales)
    return tilings[int(scales.argmax() if (scales < 1).all() else covering.argmin())]


def join(crops: Sequence[Crops], patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts the pictures of an example together.

    Args:
      crops: at least one, in the order of the prompt.
      patches: of a crop.

    Returns:
      u8[N, S, S, 3] and i32[F, W], whose patch indices count through all crops.
    """
    offsets = np.cumsum([0] + [patches * len(c.pixels) for c in crops])
    pooling = [np.where(c.pooling < 0, -1, c.pooling + offset) for c, offset in zip(crops, offsets)]
    return np.concatenate([c.pixels for c in crops]), np.concatenate(pooling).astype(np.int32)
