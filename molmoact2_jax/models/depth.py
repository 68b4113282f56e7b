"""Depth gate of Think: a number per layer that scales keys and values of the depth tokens. Source: `model.md` 5."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import ExpertConfig
from molmoact2_jax.nn import params
from molmoact2_jax.nn.params import Params


class Gate(nn.Module):
    """A logit from the mean value vector: one for all layers, or one per layer."""

    cfg: ExpertConfig
    per_layer: bool
    bias: float = -4.0

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Maps [L, B, ..., C] to gates [L, B, ...] (the single gate reads the last layer and serves all)."""
        layers = "layers " if self.per_layer else ""
        kernel = params.declare(self, "kernel", f"{layers}context_embed", params.zeros)
        constant = nn.initializers.constant(self.bias)
        bias = params.declare(self, "bias", layers, constant)
        source = pooled if self.per_layer else pooled[-1:]
        extra = (1,) * (source.ndim - 2)
        logits = (source * kernel.reshape(-1, *extra, kernel.shape[-1])).sum(axis=-1) + bias.reshape(-1, *extra)
        return jnp.broadcast_to(jax.nn.sigmoid(logits), pooled.shape[:-1])


def init(cfg: ExpertConfig, per_layer: bool, bias: float, key: jax.Array) -> Params:
    """Returns boxed parameters of a closed gate."""
    pooled = jnp.zeros((cfg.depth, 1, cfg.context_width))
    return params.init(Gate(cfg, per_layer, bias), key, pooled)


def pool(values: jax.Array, groups: jax.Array, span: jax.Array) -> jax.Array:
    """Averages value vectors over the tokens of each group that are not depth (over all its tokens if there are none).

    Args:
      values: [L, B, S, C].
      groups: bool[B, G, S], the visible tokens that belong together.
      span: bool[B, S], depth tokens.

    Returns:
      f32[L, B, G, C].
    """
    plain = groups & ~span[:, None]
    chosen = jnp.where(plain.any(axis=-1, keepdims=True), plain, groups)
    total = jnp.einsum("lbsc,bgs->lbgc", values.astype(jnp.float32), chosen.astype(jnp.float32))
    return total / jnp.maximum(chosen.sum(axis=-1), 1)[..., None]


def scales(cfg: ExpertConfig, tree: Params, values: jax.Array, groups: jax.Array, span: jax.Array) -> jax.Array:
    """Returns [L, B, S], what keys and values are multiplied by.

    That is the gate of its group on a depth token (a token is in one group at most, or in any if they are all alike),
    and 1 elsewhere. Arguments: `pool`.
    """
    per_layer = tree["kernel"].ndim == 2
    gate = params.apply(Gate(cfg, per_layer), tree, pool(values, groups, span))  # [L, B, G]
    member = groups & span[:, None]
    own = jnp.take_along_axis(gate, member.argmax(axis=1)[None].repeat(gate.shape[0], axis=0), axis=2)
    return jnp.where(member.any(axis=1)[None], own, 1.0).astype(values.dtype)
