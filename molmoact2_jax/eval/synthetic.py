"""Weights, prompts and packed rows that have the sizes of real ones and mean nothing: for measuring."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax import batch as batches
from molmoact2_jax.config import ModelConfig, ProcessorConfig
from molmoact2_jax.data import images
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import paths
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import observe
from molmoact2_jax.text import prompt

TEXT = 98  # tokens of an instruction with state, tag and frame
FILLER = 64  # id of a byte, which every vocabulary has


def weights(cfg: ModelConfig, dtype: Any, seed: int = 0) -> Params:
    """Draws weights leaf by leaf on the default device, in the dtype to compute in; norms scale by one."""
    shapes, _ = molmoact2.abstract(cfg)
    key = jax.random.key(seed)

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        if paths.name(path).endswith("norm"):
            return jnp.ones(like.shape, dtype)
        return _draw(jax.random.fold_in(key, zlib.crc32(paths.name(path).encode())), like.shape, jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def processor(cfg: ModelConfig) -> ProcessorConfig:
    """Returns the released preparation of pictures at the size of a model."""
    return ProcessorConfig(image_size=cfg.vit.image_size, patch_size=cfg.vit.patch_size)


def pictures(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Draws pictures u8[H, W, 3]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def prompt_row(cfg: ModelConfig, shown: Sequence[np.ndarray], depth: bool) -> observe.Row:
    """Resizes pictures u8[H, W, 3] and lays out a prompt around them as a released one; its text is filler."""
    settings = processor(cfg)
    crops = [images.crops_of(picture, settings) for picture in shown]
    visuals = [prompt.image_tokens(cfg.tokens, crop.grid, settings) for crop in crops]
    text = np.full(TEXT - 1, FILLER, np.int32)
    if depth:
        text[-1] = cfg.tokens.depth.output
    tokens = np.concatenate([[cfg.tokens.bos], *visuals, text]).astype(np.int32)
    return observe.Row(tokens, *images.join(crops, cfg.vit.grid**2))


def lengthen(cfg: ModelConfig, row: observe.Row, length: int | None) -> observe.Row:
    """Puts filler behind the pictures of a prompt until it has `length` tokens (None: as it is).

    Raises:
      ValueError: the prompt is longer already.
    """
    if length is None:
        return row
    more = length - len(row.tokens)
    if more < 0:
        raise ValueError(f"prompt_tokens: {length}, expected at least {len(row.tokens)}, what pictures and text take.")
    behind = int(np.flatnonzero(np.isin(row.tokens, cfg.tokens.image_family))[-1]) + 1
    return observe.Row(np.insert(row.tokens, behind, np.full(more, FILLER, np.int32)), row.crops, row.pooling)


def packed(cfg: ModelConfig, *, rows: int, tokens: int, crops: int, chunks: int, seed: int = 0) -> batches.Batch:
    """Makes packed rows without padding: one example per chunk, each with its share of tokens and pictures.

    The last sixth of every example has loss.

    Raises:
      ValueError: the pictures leave no room for text, or there is no chunk.
    """
    settings, rng = processor(cfg), np.random.default_rng(seed)
    grid, _ = images.layout(settings.image_size, settings.image_size, settings)
    visual = prompt.image_tokens(cfg.tokens, grid, settings)
    owners = np.arange(crops) * chunks // max(crops, 1) if chunks else np.zeros(0, int)
    bounds = np.linspace(0, tokens, chunks + 1).astype(int)
    line = _line(cfg, visual, owners, bounds)
    window = images.pooling_indices(cfg.vit.grid, settings.pooling)
    pooling = np.concatenate([window + crop * cfg.vit.grid**2 for crop in range(crops)] or [window[:0]])
    side, horizon, width = cfg.vit.image_size, cfg.max_horizon, cfg.action_dim
    repeat = lambda a: np.repeat(np.asarray(a)[None], rows, axis=0)  # noqa: E731
    return batches.Batch(
        **{name: repeat(values) for name, values in line.items()},
        crops=rng.integers(0, 256, (rows, crops, side, side, 3), np.uint8), crop_valid=np.ones((rows, crops), bool),
        pooling=repeat(pooling.astype(np.int32)),
        actions=rng.uniform(-1, 1, (rows, chunks, horizon, width)).astype(np.float32),
        action_valid=np.ones((rows, chunks, horizon), bool), channel_valid=np.ones((rows, chunks, width), bool),
        chunk_example=repeat(np.arange(chunks, dtype=np.int32)), row=np.arange(rows, dtype=np.int32),
    )  # fmt: skip


def _line(cfg: ModelConfig, visual: np.ndarray, owners: np.ndarray, bounds: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays over tokens of one row."""
    examples, length = len(bounds) - 1, int(bounds[-1])
    if examples < 1:
        raise ValueError("packed: no chunks, expected at least one per row.")
    line = {name: np.zeros(length, np.int32) for name in ("positions", "segments", "styles")}
    line |= dict(tokens=np.full(length, FILLER, np.int32), weights=np.zeros(length, np.float32))
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        shown = np.concatenate([[cfg.tokens.bos], *[visual] * int((owners == i).sum())])
        answer = max(1, (stop - start) // 6)
        if len(shown) + answer > stop - start:
            raise ValueError(
                f"packed: {len(shown)} tokens of pictures in an example of {stop - start}, expected room for "
                f"{answer} of text. Take longer rows or fewer crops."
            )
        line["tokens"][start : start + len(shown)] = shown
        line["positions"][start:stop], line["segments"][start:stop] = np.arange(stop - start), batches.SEGMENT * i
        line["weights"][stop - answer - 1 : stop - 1] = 2 / np.sqrt(answer)
    return line | {"targets": np.roll(line["tokens"], -1)}
