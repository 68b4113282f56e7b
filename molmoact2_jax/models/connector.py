"""Attention pooling of patch features over small windows, then a gated projection. Source: `model.md` 3.3."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import ConnectorConfig
from molmoact2_jax.nn import ops, params
from molmoact2_jax.nn.params import Params


class Connector(nn.Module):
    """Pools each window by attention from its mean, then projects to the decoder's width."""

    cfg: ConnectorConfig

    @nn.compact
    def __call__(self, windows: jax.Array, valid: jax.Array) -> jax.Array:
        cfg, linear = self.cfg, functools.partial(params.linear, self)
        counted = valid if cfg.pooling_mask else jnp.ones_like(valid)
        count = jnp.maximum(counted.sum(axis=-1), 1)[:, None, None]
        query = windows.sum(axis=1, keepdims=True) / count.astype(windows.dtype)
        dims = "features heads head_dim"
        q = linear("q", "btc,cnh->btnh", query, dims, bias=True)
        k, v = (linear(n, "btc,cnh->btnh", windows, dims, bias=True) for n in ("k", "v"))
        y = ops.attend(q, k, v, counted[:, None])
        y = linear("o", "btnh,nhd->btd", y, "heads head_dim embed", bias=True)[:, 0]
        gate, up = (linear(n, "bd,df->bf", y, "embed mlp") for n in ("gate", "up"))
        return linear("down", "bf,fe->be", ops.ACTIVATIONS[cfg.activation](gate) * up, "mlp out")


def init(cfg: ConnectorConfig, key: jax.Array) -> Params:
    """Returns boxed parameters."""
    return params.init(Connector(cfg), key, jnp.zeros((1, 4, cfg.feature_width)), jnp.ones((1, 4), bool))


def pool(cfg: ConnectorConfig, tree: Params, features: jax.Array, pooling: jax.Array) -> jax.Array:
    """Pools windows of patches into image tokens.

    Args:
      cfg: sizes.
      tree: parameters.
      features: [B, I * P, C], patch features of all crops of an example.
      pooling: i32[B, F, W], patch indices of each window, -1 for an empty slot.

    Returns:
      [B, F, out]; rows of windows without any patch are finite and mean nothing.
    """
    batch, tokens, slots = pooling.shape
    valid = pooling >= 0
    index = jnp.maximum(pooling, 0).reshape(batch, tokens * slots, 1)
    windows = jnp.take_along_axis(features, index, axis=1).reshape(batch, tokens, slots, -1)
    windows = jnp.where(valid[..., None], windows, 0)
    flat = windows.reshape(batch * tokens, slots, -1)
    return params.apply(Connector(cfg), tree, flat, valid.reshape(-1, slots)).reshape(batch, tokens, -1)
