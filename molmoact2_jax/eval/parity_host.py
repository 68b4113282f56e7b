"""Compares picture preparation and the action codec with recorded results. Source: `golden/README.md`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molmoact2_jax.data import images
from molmoact2_jax.eval.golden import Oracle, Row


def rows(oracle: Oracle) -> Iterator[Row]:
    """Yields the rows of what needs no model."""
    yield from _pictures(oracle)
    yield from _codec(oracle)


def patches(crops: np.ndarray, size: int) -> np.ndarray:
    """Cuts u8[B, H, W, 3] into f32[B, P, 3 * size**2] in [-1, 1], with the released processor's rounding."""
    return images.patchify(crops, size).astype(np.float32) / 255 * 2 - 1


def _pictures(oracle: Oracle) -> Iterator[Row]:
    settings = oracle.host.processor
    for shape in ("big", "tall"):
        prefix = f"preproc/{shape}/"
        if f"{prefix}image" not in oracle.arrays:
            continue
        picture = oracle.arrays[f"{prefix}image"]
        crops, tiles = images.crops_of(picture, settings), images.multi_crop(picture, settings)
        yield oracle.check(f"{prefix}pixel_values", patches(crops.pixels, settings.patch_size), 0)
        yield oracle.check(f"{prefix}pooling", crops.pooling, 0)
        sums = patches(tiles.pixels, settings.patch_size).sum(axis=-1)
        yield oracle.check(f"{prefix}multi_pixel_values_sum", sums)
        yield oracle.check(f"{prefix}multi_pooling", tiles.pooling, 0)
        yield oracle.check(f"{prefix}multi_grids", np.asarray(tiles.grid), 0)


def _codec(oracle: Oracle) -> Iterator[Row]:
    recorded, codec = oracle.arrays, oracle.host.codec
    if codec is None or "fast/actions" not in recorded:
        return
    encoded = codec.encode(recorded["fast/actions"])
    yield oracle.check("fast/lens", np.asarray([len(tokens) for tokens in encoded]), 0)
    yield oracle.check("fast/tokens", np.concatenate(encoded), 0)
    horizon, channels = recorded["fast/actions"].shape[1:]
    streams = np.split(recorded["fast/tokens"], np.cumsum(recorded["fast/lens"])[:-1])
    yield oracle.check("fast/decoded", codec.decode([s.tolist() for s in streams], horizon, channels))
    bad = codec.decode([recorded["fast/bad_tokens"].tolist()], horizon, channels, strict=False)
    yield oracle.check("fast/bad_decoded", bad, 0)
    for index in range(len(oracle.cases)):
        chunk = recorded[f"case{index}/target_actions"]
        tokens = codec.encode(chunk.reshape(-1, *chunk.shape[-2:]))[0]
        yield oracle.check(f"case{index}/target_action_tokens", np.asarray(tokens), 0)
