"""Low-rank adaptation as a kind of weight: leaves chosen by path become `LoRA(base, down, up)`.

A projection y = x W becomes y = x W + scale (x down) up. `ops.einsum` accepts either kind, so no layer knows of it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.nn import paths

Params = Any
Words = Any

_PAIRS = ("heads", "kv_heads", "context_heads")  # each is followed by a head size, with which it is one input


@functools.partial(jax.tree_util.register_dataclass, data_fields=["base", "down", "up"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LoRA:
    """A weight and its low-rank change. I and O are the flattened inputs and outputs of `base`, r is the rank.

    Attributes:
      base: [layers?, inputs, outputs], the frozen weight.
      down: f32[layers?, I, r].
      up: f32[layers?, r, O].
      scale: alpha / r.
    """

    base: Any
    down: Any
    up: Any
    scale: float


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which weights are adapted, and how. The released recipe has rank 64 and alpha 16 (training.md 1.6)."""

    targets: str
    rank: int = 64
    alpha: float = 16.0


def attach(params: Params, words: Words, cfg: LoRAConfig, key: jax.Array) -> Params:
    """Replaces the chosen weights by `LoRA`s that change nothing yet: down ~ N(0, 1/rank^2), up = 0.

    Args:
      params: tree of weights.
      words: tree of the same structure, the words of each weight's axes.
      cfg: regular expression over paths, rank and alpha.
      key: each weight folds a hash of its path in, so its start does not depend on the other targets.

    Raises:
      ValueError: no path matches, or one that matches is not a projection (a bias, a norm).
    """
    chosen = paths.select(params, cfg.targets, "lora.targets")

    def one(path: Any, weight: jax.Array, dims: tuple[str, ...], selected: bool) -> Any:
        if not selected:
            return weight
        layers, inputs = _split(paths.name(path), dims)
        stack, rows = weight.shape[:layers], math.prod(weight.shape[layers:inputs])
        fold = jax.random.fold_in(key, zlib.crc32(paths.name(path).encode()))
        down = jax.random.normal(fold, (*stack, rows, cfg.rank), jnp.float32) / cfg.rank
        up = jnp.zeros((*stack, cfg.rank, math.prod(weight.shape[inputs:])), jnp.float32)
        return LoRA(weight, down, up, cfg.alpha / cfg.rank)

    return jax.tree_util.tree_map_with_path(one, params, words, chosen)


def attach_words(words: Words, cfg: LoRAConfig) -> Words:
    """Returns the words of the axes after `attach`; a flattened axis keeps the word of its slowest part."""

    def one(path: Any, dims: tuple[str, ...]) -> Any:
        if not re.search(cfg.targets, paths.name(path)):
            return dims
        layers, inputs = _split(paths.name(path), dims)
        stack = dims[:layers]
        return LoRA(dims, (*stack, dims[layers], "rank"), (*stack, "rank", dims[inputs]), cfg.alpha / cfg.rank)

    return jax.tree_util.tree_map_with_path(one, words, is_leaf=paths.is_words)


def _split(name: str, dims: tuple[str, ...]) -> tuple[int, int]:
    """Where the inputs of a weight begin and end among its axes."""
    layers = int(dims[:1] == ("layers",))
    inputs = layers + 1 + int(len(dims) > layers and dims[layers] in _PAIRS)
    if inputs >= len(dims):
        raise ValueError(
            f"lora.targets: {name} has axes {dims}, expected inputs and outputs of a projection. Narrow the expression."
        )
    return layers, inputs


def merge(params: Params) -> Params:
    """Adds every low-rank change to its base weight; the result has plain weights in the dtype of the base."""
    return jax.tree.map(_merged, params, is_leaf=_is_lora)


def _merged(weight: Any) -> Any:
    if not _is_lora(weight):
        return weight
    change = jnp.einsum("...ir,...ro->...io", weight.down, weight.up, precision="highest")
    base = weight.base.astype(jnp.float32)
    return (base + weight.scale * change.reshape(base.shape)).astype(weight.base.dtype)


def _is_lora(node: Any) -> bool:
    return isinstance(node, LoRA)
