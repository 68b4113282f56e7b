"""Low-rank adaptation as a kind of weight: leaves chosen by path become `LoRA(base, down, up)`.

A projection y = x W becomes y = x W + scale (x down) up. `ops.einsum` accepts either kind, so no layer knows of it.
In training, `with_keys` gives the weights the keys of dropout on the x of the second term.
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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "down", "up", "keys"],
    meta_fields=["scale", "dropout"],
)
@dataclasses.dataclass(frozen=True)
class LoRA:
    """A weight and its low-rank change. I and O are the flattened inputs and outputs of `base`, r is the rank.

    Attributes:
      base: [layers?, inputs, outputs], the frozen weight.
      down: f32[layers?, I, r].
      up: f32[layers?, r, O].
      scale: alpha / r.
      dropout: probability that an input of `down` is zeroed, where there are keys.
      keys: key[layers?, B], one for each row of the batch, or None: no dropout.
    """

    base: Any
    down: Any
    up: Any
    scale: float
    dropout: float = 0.0
    keys: Any = None


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which weights are adapted, and how. The numbers are those of the released recipe (training.md 1.6).

    Attributes:
      targets: regular expression over paths.
      rank: r.
      alpha: the change is scaled by alpha / rank.
      dropout: of the inputs of the change, in training alone; in [0, 1).
    """

    targets: str
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank}, dropout {self.dropout}, expected a positive rank and a dropout in [0, 1)."
            )


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
        return LoRA(weight, down, up, cfg.alpha / cfg.rank, cfg.dropout)

    return jax.tree_util.tree_map_with_path(one, params, words, chosen)


def attach_words(words: Words, cfg: LoRAConfig) -> Words:
    """Returns the words of the axes after `attach`; a flattened axis keeps the word of its slowest part."""

    def one(path: Any, dims: tuple[str, ...]) -> Any:
        if not re.search(cfg.targets, paths.name(path)):
            return dims
        layers, inputs = _split(paths.name(path), dims)
        down, up = (*dims[:layers], dims[layers], "rank"), (*dims[:layers], "rank", dims[inputs])
        return LoRA(dims, down, up, cfg.alpha / cfg.rank, cfg.dropout)

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


def with_keys(params: Params, keys: jax.Array | None) -> Params:
    """Turns dropout on: every low-rank change gets its keys.

    Args:
      params: tree of weights.
      keys: key[B], one for each row; every weight folds a hash of its path in, every layer its index. None: no dropout.

    Returns:
      The tree with the same weights. It is for inputs whose leading axis is B, or B times as many crops or windows.
    """
    if keys is None:
        return params
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))

    def one(path: Any, weight: Any) -> Any:
        if not _is_lora(weight) or not weight.dropout:
            return weight
        own = fold(keys, zlib.crc32(paths.name(path).encode()))
        if weight.down.ndim == 3:  # layers come first
            own = jax.vmap(fold, in_axes=(None, 0))(own, jnp.arange(weight.down.shape[0]))
        return dataclasses.replace(weight, keys=own)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_lora)


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
