"""Compares depth codes, schedules and the actions behind them with recorded ones. Source: `golden/README.md`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator

import numpy as np

from molmoact2_jax.data import depth
from molmoact2_jax.eval.golden import Oracle, Row
from molmoact2_jax.serve.records import DepthCache

Adaptive = Generator[Row, None, DepthCache | None]  # yields rows, returns the cache of the call


def rows(oracle: Oracle, index: int) -> Iterator[Row]:
    """Yields the rows of one case: consecutive frames, a foreign cache, discrete actions, free-running codes."""
    if not oracle.cfg.depth_reasoning:
        return
    yield from _frames(oracle, index)
    yield from _foreign_cache(oracle, index)
    noise = oracle.arrays[f"case{index}/noise"][0]
    for name, options in (
        ("depth_discrete", dict(depth="adaptive", mode="discrete", strict=False)),
        ("full_depth", dict(depth="full", noise=[noise])),
    ):
        prefix = f"case{index}/{name}/"
        if f"{prefix}tokens" not in oracle.arrays:
            continue
        out = oracle.policy.predict_actions([oracle.observation(index)], **options)[0]
        yield oracle.check(f"{prefix}tokens", out.token_ids, 0)
        yield oracle.check(f"{prefix}actions", out.actions)


def _frames(oracle: Oracle, index: int) -> Iterator[Row]:
    cache: DepthCache | None = None
    for frame in itertools.count():
        if f"case{index}/frame{frame}/tokens" not in oracle.arrays:
            return
        cache = yield from _adaptive(oracle, index, f"frame{frame}", f"frame{frame}", cache)


def _foreign_cache(oracle: Oracle, index: int) -> Iterator[Row]:
    """The pictures of frame 2 with a cache that the model would not have left."""
    prefix = f"case{index}/foreign_cache/"
    if f"{prefix}tokens" in oracle.arrays:
        image, codes = (oracle.arrays[f"{prefix}previous_{part}"] for part in ("image", "bins"))
        yield from _adaptive(oracle, index, "foreign_cache", "frame2", DepthCache(image, codes.astype(np.int32)))


def _adaptive(oracle: Oracle, index: int, name: str, frame: str, cache: DepthCache | None) -> Adaptive:
    """Compares one adaptive call and returns the cache that it leaves."""
    prefix, observation = f"case{index}/{name}/", oracle.observation(index, frame)
    noise = oracle.arrays[f"case{index}/noise"][0]
    if cache is not None and f"{prefix}update_mask" in oracle.arrays:
        yield oracle.check(f"{prefix}update_mask", depth.update_mask(cache.image, observation.images[0]), 0)
    out = oracle.policy.predict_actions([observation], depth="adaptive", depth_caches=[cache], noise=[noise])[0]
    tokens = oracle.check(f"{prefix}tokens", out.token_ids, 0)
    yield dataclasses.replace(tokens, note=f"{out.changed} cells, {out.passes} passes")
    yield oracle.check(f"{prefix}depth_bins", out.depth_codes, 0)
    yield oracle.check(f"{prefix}actions", out.actions)
    return out.depth_cache
