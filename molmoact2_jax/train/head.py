"""Cross-entropy over a large vocabulary, computed only where there is loss and never for all positions at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Logits = Callable[[Any, jax.Array, Any], jax.Array]  # (head parameters, [B, T, D], key[B] or None) -> f32[B, T, V]


class Method(NamedTuple):
    """How the loss is computed.

    Attributes:
      logits: from the head's parameters and a residual stream.
      z_weight: weight of the squared log-normaliser (released: 1e-4).
      chunk: positions per row at a time.
    """

    logits: Logits
    z_weight: float
    chunk: int


class Targets(NamedTuple):
    """Ids i32[B, T], and weights f32[B, T], already divided by whatever the loss is normalised by."""

    ids: jax.Array
    weights: jax.Array


class Tokens(NamedTuple):
    """Per target: cross-entropy f32[B, T], squared log-normaliser f32[B, T], hit bool[B, T]; 0 without weight."""

    entropy: jax.Array
    square: jax.Array
    hit: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def language_loss(
    method: Method, head: Any, x: jax.Array, targets: Targets, keys: jax.Array | None = None
) -> tuple[jax.Array, Tokens]:
    """Sums weight * (cross-entropy + z_weight * logsumexp^2) over all targets.

    Positions with weight are moved to the front of each row and read `chunk` at a time, so that work and memory follow
    the number of supervised tokens. The gradient is taken in the same pass: logits are computed once.

    Args:
      method: how it is computed.
      head: parameters of the head; its gradients have the dtypes of its leaves.
      x: [B, T, D], residual stream after the last block.
      targets: what is predicted.
      keys: key[B] of the head's dropout, or None without.

    Returns:
      f32[], and values per token, which carry no gradient.
    """
    return _forward(method, head, x, targets, keys)[0]


def _forward(
    method: Method, head: Any, x: jax.Array, targets: Targets, keys: jax.Array | None
) -> tuple[tuple[jax.Array, Tokens], tuple[Any, jax.Array]]:
    length = x.shape[1]
    chunk = min(method.chunk, length)
    order = jnp.argsort(targets.weights == 0, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -length % chunk)), mode="edge")
    most = (targets.weights != 0).sum(axis=1).max()

    def part_loss(head: Any, part: jax.Array, own: Any, ids: jax.Array, scale: jax.Array) -> tuple[jax.Array, Tokens]:
        values = method.logits(head, part, own)
        normaliser = jax.nn.logsumexp(values, axis=-1)
        entropy = normaliser - jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]
        total = jnp.sum(scale * (entropy + method.z_weight * jnp.square(normaliser)))
        return total, Tokens(entropy, jnp.square(normaliser), values.argmax(axis=-1) == ids)

    def step(state: tuple) -> tuple:
        i, total, tokens, to_head, to_x = state
        index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk, axis=1)
        fresh = i * chunk + jnp.arange(chunk) < length  # the padding of `order` repeats a position
        part = jnp.take_along_axis(x, index[..., None], axis=1)
        ids, scale = (jnp.take_along_axis(a, index, axis=1) for a in targets)
        scale = jnp.where(fresh, scale, 0)
        ids = jnp.where(scale != 0, ids, 0)  # elsewhere they may be image tokens, which have no logit
        own = None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        (loss, new), grads = jax.value_and_grad(part_loss, (0, 1), has_aux=True)(head, part, own, ids, scale)
        rows = jnp.arange(x.shape[0])[:, None]
        tokens = jax.tree.map(lambda a, b: a.at[rows, index].set(jnp.where(scale != 0, b, a[rows, index])), tokens, new)
        to_head = jax.tree.map(lambda a, b: a + b.astype(a.dtype), to_head, grads[0])
        return i + 1, total + loss, tokens, to_head, to_x.at[rows, index].add(grads[1].astype(to_x.dtype))

    zeros = jnp.zeros(targets.ids.shape, jnp.float32)
    start = (0, jnp.zeros(()), Tokens(zeros, zeros, zeros > 0), _float32_zeros(head), jnp.zeros_like(x))
    _, total, tokens, to_head, to_x = jax.lax.while_loop(lambda s: s[0] * chunk < most, step, start)
    return (total, tokens), (jax.tree.map(lambda g, p: g.astype(p.dtype), to_head, head), to_x)


def _float32_zeros(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)


def _backward(method: Method, grads: tuple, cotangent: tuple) -> tuple:
    to_head, to_x = jax.tree.map(lambda g: (g * cotangent[0]).astype(g.dtype), grads)
    return to_head, to_x, None, None


language_loss.defvjp(_forward, _backward)
