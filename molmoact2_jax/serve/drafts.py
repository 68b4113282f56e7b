"""What a call starts its depth codes from, and which cells it predicts: from the cache of the call before."""

from __future__ import annotations

import numpy as np

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import depth as depth_masks
from molmoact2_jax.data import images
from molmoact2_jax.serve.records import DepthCache


def make(cfg: ModelConfig, depth: str, cache: DepthCache | None, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compares the first camera with a cache.

    Args:
      cfg: the model.
      depth: kind of reasoning; only "adaptive" reads the cache, "full" predicts everything as released.
      cache: of the call before in the same episode, or None.
      first: u8[H, W, 3], what the first camera shows now; its size may differ from the cached picture's.

    Returns:
      Draft of the codes i32[C] and cells to predict bool[C]: all where there is no cache.

    Raises:
      ValueError: a cache without depth, or one that does not fit; the field is named.
    """
    cells = cfg.num_depth_codes
    if cache is not None and depth == "off":
        raise ValueError("depth_cache: given with depth='off', expected None. Pass depth='adaptive' to use it.")
    if cache is None or depth != "adaptive":
        return np.zeros(cells, np.int32), np.ones(cells, bool)
    codes, before = _checked(cfg, cache)
    return codes.astype(np.int32), depth_masks.update_mask(before, first)


def _checked(cfg: ModelConfig, cache: DepthCache) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(cache, DepthCache):
        raise ValueError(
            f"depth_cache: {type(cache).__name__}, expected a DepthCache(image, codes). "
            "Pass the `depth_cache` of the call before, or let `Policy.episode` keep it."
        )
    codes, cells, most = np.asarray(cache.codes), cfg.num_depth_codes, cfg.tokens.num_depths - 1
    if codes.shape != (cells,) or codes.dtype.kind not in "iu":
        raise ValueError(f"depth_cache.codes: {codes.dtype}{list(codes.shape)}, expected int32[{cells}].")
    if codes.min() < 0 or codes.max() > most:
        raise ValueError(f"depth_cache.codes: from {codes.min()} to {codes.max()}, expected 0 to {most}.")
    if cache.image is None:
        raise ValueError("depth_cache.image: None, expected the first camera's picture of the previous call.")
    return codes, images.coerce(cache.image, "depth_cache.image")
