"""SigLIP2 image encoder without class token and last norm; two residual streams are tapped. Source: `model.md` 3.2."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import ViTConfig
from molmoact2_jax.nn import ops, params
from molmoact2_jax.nn.params import Params


class Patches(nn.Module):
    """Linear embedding of flattened patches plus learned positions."""

    cfg: ViTConfig

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        x = params.linear(self, "patch", "bpc,cd->bpd", patches, "pixels embed", bias=True)
        table = params.declare(self, "position", "patches embed").astype(x.dtype)
        return x + _resized(table, patches.shape[1])


class Block(nn.Module):
    """Pre-norm attention and MLP, with biases; scores and softmax in float32."""

    cfg: ViTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = functools.partial(params.linear, self, bias=True)
        h = params.layer_norm(self, "attn_norm", x)
        q, k, v = (linear(n, "bpd,dnh->bpnh", h, "embed heads head_dim") for n in ("q", "k", "v"))
        x = x + linear("o", "bpnh,nhd->bpd", ops.ATTENTION[self.cfg.attention](q, k, v), "heads head_dim embed")
        h = params.layer_norm(self, "mlp_norm", x)
        h = ops.ACTIVATIONS[self.cfg.activation](linear("up", "bpd,df->bpf", h, "embed mlp"))
        return x + linear("down", "bpf,fd->bpd", h, "mlp embed")


def init(cfg: ViTConfig, key: jax.Array) -> Params:
    """Returns boxed parameters `{patches, blocks}`."""
    first, rest = jax.random.split(key)
    return {
        "patches": params.init(Patches(cfg), first, jnp.zeros((1, cfg.num_positions, cfg.dims["pixels"]))),
        "blocks": params.init(Block(cfg), rest, jnp.zeros((1, 1, cfg.width)), layers=cfg.depth),
    }


def encode(cfg: ViTConfig, tree: Params, patches: jax.Array, remat: params.Policy = None) -> jax.Array:
    """Encodes crops.

    Args:
      cfg: sizes.
      tree: parameters.
      patches: [B, P, 3 * patch**2], values in [-1, 1].
      remat: policy of rematerialisation for each block.

    Returns:
      [B, P, taps * width], the tapped residual streams side by side, in the order of `cfg.taps`.
    """
    x = params.apply(Patches(cfg), tree["patches"], patches)

    def block(weights: Params, carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        x, taps = carry
        x = params.apply(Block(cfg), weights, x)
        return (x, tuple(jnp.where(index == at, x, tap) for at, tap in zip(cfg.taps, taps))), None

    (_, taps), _ = params.scan(block, tree["blocks"], (x, (x,) * len(cfg.taps)), jnp.arange(cfg.depth), remat=remat)
    return jnp.concatenate(taps, axis=-1)


def patchify(crops: jax.Array, cfg: ViTConfig) -> jax.Array:
    """Cuts u8[B, H, W, 3] into f32[B, P, 3 * patch**2] in [-1, 1]; rows first, then (row, column, channel) inside."""
    batch, height, width, _ = crops.shape
    p = cfg.patch_size
    x = crops.reshape(batch, height // p, p, width // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, 3 * p * p).astype(jnp.float32) / 255 * 2 - 1


def _resized(table: jax.Array, patches: int) -> jax.Array:
    """Resizes the position table bicubically (antialiased) where the crop's grid differs from the stored one."""
    if patches == table.shape[0]:
        return table
    old, new = (round(n**0.5) for n in (table.shape[0], patches))
    grid = table.reshape(old, old, -1).astype(jnp.float32)
    return jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic").reshape(patches, -1).astype(table.dtype)
