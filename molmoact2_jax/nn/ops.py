"""Operations on arrays that the towers share. Norms, softmax and rotary angles are float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.nn import lora

Array = jax.Array | np.ndarray  # of a device, or of the host where it enters a program


def einsum(spec: str, x: jax.Array, w: jax.Array | lora.LoRA) -> jax.Array:
    """Projects `x` by a weight stored inputs first, outputs last, as one two-dimensional product.

    The products of a CPU backend are several times faster on flattened operands, forward and backward.

    Args:
      spec: like "btd,dnh->btnh": the contracted letters end `x` and begin `w`.
      x: any leading axes, then the inputs.
      w: inputs, then outputs; or a LoRA of such a weight.

    Returns:
      The leading axes of `x`, then the outputs, in the dtype of `x`.
    """
    if isinstance(w, lora.LoRA):
        return einsum(spec, x, w.base) + w.scale * _low_rank(spec, x, w)
    inputs = _contracted(spec)
    rows, outputs = x.shape[: x.ndim - inputs], w.shape[inputs:]
    flat = x.reshape(math.prod(rows), -1) @ w.reshape(-1, math.prod(outputs)).astype(x.dtype)
    return flat.reshape(*rows, *outputs)


def _low_rank(spec: str, x: jax.Array, w: lora.LoRA) -> jax.Array:
    inputs = _contracted(spec)
    rows = x.shape[: x.ndim - inputs]
    if w.keys is not None:  # a row of the batch may come as several crops or windows
        x = dropout(x.reshape(w.keys.shape[0], -1), w.dropout, w.keys)
    flat = x.reshape(math.prod(rows), -1) @ w.down.astype(x.dtype) @ w.up.astype(x.dtype)
    return flat.reshape(*rows, *w.base.shape[inputs:])


@functools.cache
def _contracted(spec: str) -> int:
    left, out = spec.split("->")
    x, w = left.split(",")
    inputs = sum(letter in x for letter in w)
    assert x[-inputs:] == w[:inputs], spec
    assert out == x[:-inputs] + w[inputs:], spec
    return inputs


def rms_norm(x: jax.Array, weight: jax.Array | None = None, eps: float = 1e-6) -> jax.Array:
    """Divides the last axis by its root mean square, then scales by `weight`, in float32; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y if weight is None else y * weight.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis with the biased variance in float32; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Rotary(NamedTuple):
    """Cosines and sines f32[B, T, 1, H/2] of the angles of rotary positions, the same for every layer."""

    cos: jax.Array
    sin: jax.Array


def rotary(positions: jax.Array, base: float, size: int) -> Rotary:
    """Returns the rotation of positions i32[B, T] for heads of `size`: angle j is position * base^(-2j/size)."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies(base, size)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def rope(x: jax.Array, turn: Rotary) -> jax.Array:
    """Rotates pairs (j, j + H/2) of each head of [B, T, N, H]."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin], axis=-1).astype(x.dtype)


def frequencies(base: float, size: int) -> np.ndarray:
    """Returns the rotary frequencies f32[size/2], rounded as PyTorch rounds them (angles grow to hundreds of rad)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1) / np.power(float(base), exponents.astype(np.float64)).astype(np.float32)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax attention with grouped keys; products accumulate, and the softmax runs, in float32.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H]; key head j serves query heads j * N / K onwards.
      v: like k.
      mask: bool[B, T, S] or [B, 1, S], true = may attend. A row without any key attends to all equally.

    Returns:
      [B, T, N, H].
    """
    batch, queries, heads, size = q.shape
    if mask is not None and (mask.ndim != 3 or mask.shape[1] not in (1, queries) or mask.shape[2] != k.shape[1]):
        raise ValueError(
            f"attend: mask is {mask.shape}, expected (B, T, S) = ({batch}, {queries}, {k.shape[1]}) from q {q.shape} "
            f"and k {k.shape}. Padding masks need a query axis: mask[:, None, :]."
        )
    keys, groups = k.shape[2], heads // k.shape[2]
    rows = q.reshape(batch, queries, keys, groups, size).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    columns = k.transpose(0, 2, 3, 1)  # [B, K, H, S]
    scores = jnp.matmul(
        rows.reshape(batch, keys, groups * queries, size), columns, preferred_element_type=jnp.float32
    ).reshape(batch, keys, groups, queries, -1) / math.sqrt(size)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    # Dividing by the sum after the product touches H numbers per query instead of S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    flat = weights.astype(v.dtype).reshape(batch, keys, groups * queries, -1)
    y = jnp.matmul(flat, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    y = y.reshape(batch, keys, groups, queries, size) / total
    return y.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def fused_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, *, implementation: Any
) -> jax.Array:
    """Computes `attend` by `jax.nn.dot_product_attention`: "xla" anywhere, "cudnn" on NVIDIA GPUs in 16-bit types."""
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None], (mask.shape[0], 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


# The name that a tower's configuration chooses by.
ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "matmul": attend,
    "xla": functools.partial(fused_attend, implementation="xla"),
    "cudnn": functools.partial(fused_attend, implementation="cudnn"),
}


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; identity without keys.

    Args:
      x: [B, ...].
      rate: in [0, 1).
      keys: key[B], one per row, so that a row's mask does not depend on the batch around it.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
