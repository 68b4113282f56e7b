"""Gradient accumulation: a function of a batch, summed over slices of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def accumulate(fn: Callable[[Tree], Tree], batch: Tree, num_slices: int) -> Tree:
    """Sums `fn` over slices of the rows of a batch, one slice after the other, in float32.

    A slice takes every `num_slices`-th row, so that each device keeps working on the rows it holds.

    Args:
      fn: from a batch [B / num_slices, ...] to a tree of sums (not means) over its rows.
      batch: tree of arrays [B, ...].
      num_slices: divides B; 1 calls `fn` once.

    Returns:
      The tree of sums.

    Raises:
      ValueError: `num_slices` does not divide the rows.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if num_slices < 1 or rows % num_slices:
        raise ValueError(
            f"accumulate: {rows} rows in {num_slices} slices, expected a divisor of the rows. Change accumulation."
        )
    if num_slices == 1:
        return fn(batch)
    slices = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(rows // num_slices, num_slices, *x.shape[1:]), 1, 0), batch)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), _shapes(fn, slices))

    def step(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, fn(part)), None

    return jax.lax.scan(step, zeros, slices)[0]


def _shapes(fn: Callable[[Tree], Tree], slices: Tree) -> Tree:
    return jax.eval_shape(lambda s: fn(jax.tree.map(lambda x: x[0], s)), slices)
