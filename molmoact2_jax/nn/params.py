"""Declaring weights, and running blocks over stacked layers. The only file that knows how Flax stores parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.nn import ops

Params = Any  # nested dict of arrays
Init = Callable[..., jax.Array]
Policy = Callable[..., bool] | None  # of jax.checkpoint

ones, zeros = nn.initializers.ones, nn.initializers.zeros


def uniform(bound: float) -> Init:
    """Uniform in [-bound, bound]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier(scale: float = 1.0, inputs: int = 1) -> Init:
    """Xavier-uniform of a weight whose first `inputs` axes are inputs, times `scale`."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        fans = math.prod(shape[:inputs]) + math.prod(shape[inputs:])
        return uniform(scale * (6 / fans) ** 0.5)(key, shape, dtype)

    return init


def declare(module: nn.Module, name: str, dims: str, init: Init | None = None) -> jax.Array:
    """Declares one weight: the words in `dims` give its shape (from `module.cfg.dims`) and its sharding.

    Without `init` it starts normal with standard deviation `module.cfg.init_std`.
    """
    init, words = init or nn.initializers.normal(module.cfg.init_std), tuple(dims.split())
    boxed: Callable[..., Any] = nn.with_logical_partitioning(init, words)  # `param` hands out what is in the box
    return module.param(name, boxed, tuple(module.cfg.dims[word] for word in words), jnp.float32)


def linear(
    module: nn.Module,
    name: str,
    spec: str,
    x: jax.Array,
    dims: str,
    *,
    bias: bool = False,
    init: Init | None = None,
) -> jax.Array:
    """Declares a projection and applies it: `name` [inputs, outputs], and `name_bias` [outputs] if asked for."""
    y = ops.einsum(spec, x, declare(module, name, dims, init))
    if not bias:
        return y
    weight, out = spec.split("->")[0].split(",")[1], spec.split("->")[1]
    words = [word for word, letter in zip(dims.split(), weight, strict=True) if letter in out]
    return y + declare(module, f"{name}_bias", " ".join(words), zeros).astype(y.dtype)


def norm(module: nn.Module, name: str, x: jax.Array, dims: str = "embed") -> jax.Array:
    """Declares the scale of an RMS norm over the last axis and applies it."""
    return ops.rms_norm(x, declare(module, name, dims, ones), module.cfg.norm_eps)


def layer_norm(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Declares scale and bias of a layer norm over the last axis and applies it."""
    weight, bias = declare(module, name, "embed", ones), declare(module, f"{name}_bias", "embed", zeros)
    return ops.layer_norm(x, weight, bias, module.cfg.norm_eps)


def init(module: nn.Module, key: jax.Array, *args: Any, layers: int | None = None) -> Params:
    """Initialises a module; with `layers`, that many copies on a leading axis. Leaves are boxed with their words."""
    if layers is None:
        return module.init(key, *args)["params"]
    stacked = jax.vmap(lambda k: module.init(k, *args)["params"])(jax.random.split(key, layers))
    return jax.tree.map(_with_layers, stacked, is_leaf=_boxed)


def _boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _with_layers(leaf: nn.LogicallyPartitioned) -> nn.LogicallyPartitioned:
    return leaf.replace(names=("layers", *leaf.names))


def unbox(params: Params) -> tuple[Params, Params]:
    """Splits boxed leaves into a tree of values and a tree of tuples of words."""
    values = jax.tree.map(lambda b: b.value, params, is_leaf=_boxed)
    return values, jax.tree.map(lambda b: tuple(b.names), params, is_leaf=_boxed)


def apply(module: nn.Module, params: Params, *args: Any) -> Any:
    """Runs a module with given parameters."""
    return module.apply({"params": params}, *args)


def scan(
    block: Callable[..., tuple[Any, Any]],
    layers: Params,
    carry: Any,
    *xs: Any,
    stop: int | None = None,
    remat: Policy = None,
) -> tuple[Any, Any]:
    """Runs `carry, y = block(params, carry, *x)` layer after layer.

    Args:
      block: one layer.
      layers: parameters with a leading layer axis (a loop is compiled), or a plain tuple with one tree per layer (the
        program is unrolled, which saves copies and launches).
      carry: what goes from layer to layer.
      *xs: further inputs, each with a leading layer axis, or (unrolled only) a plain tuple with one entry per layer.
      stop: run only the layers before this one. Stacked layers are then read by index, which needs no copy of the stack
        but has a slow gradient: for inference.
      remat: policy of `jax.checkpoint` for each layer.

    Returns:
      The last carry and the results `y`: with a leading axis, or unrolled as a plain tuple (see `stacked`).
    """
    if remat is not None:
        block = jax.checkpoint(block, policy=remat, prevent_cse=type(layers) is tuple)
    if type(layers) is tuple:
        ys = []
        for i, one in enumerate(layers[:stop]):
            carry, y = block(one, carry, *(layer(x, i) for x in xs))
            ys.append(y)
        return carry, tuple(ys)
    if stop is None:
        return jax.lax.scan(lambda c, each: block(each[0], c, *each[1]), carry, (layers, xs))
    return jax.lax.scan(lambda c, i: block(_at(layers, i), c, *_at(xs, i)), carry, jnp.arange(stop))


def layer(layers: Params, index: int) -> Params:
    """Returns one layer of a stack, or of a plain tuple of layers."""
    return layers[index] if type(layers) is tuple else _at(layers, index)


def unrolled(layers: Params) -> Params:
    """Returns stacked layers as a plain tuple, which `scan` runs without a loop."""

    def split(leaf: jax.Array) -> list[jax.Array]:
        return [jax.lax.index_in_dim(leaf, i, keepdims=False) for i in range(leaf.shape[0])]

    leaves, treedef = jax.tree.flatten(layers)
    return tuple(jax.tree.unflatten(treedef, one) for one in zip(*map(split, leaves), strict=True))


def stacked(layers: Params) -> Params:
    """Returns layers with a leading axis, whichever way they are held."""
    return jax.tree.map(lambda *y: jnp.stack(y), *layers) if type(layers) is tuple else layers


def append(layers: Params, last: Params) -> Params:
    """Adds a layer behind those of a stack or a plain tuple."""
    if type(layers) is tuple:
        return (*layers, last)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), layers, last)


def _at(tree: Any, index: int | jax.Array) -> Any:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), tree)
