"""Qwen3-style decoder with an explicit cache; keys and values of all layers come out stacked. Source: `model.md` 4."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import LLMConfig
from molmoact2_jax.nn import ops, params
from molmoact2_jax.nn.params import Params


class KV(NamedTuple):
    """Keys (normalised and rotated) and values, [B, S, K, H]; a stack of layers has a leading axis."""

    k: jax.Array
    v: jax.Array

    def write(self, new: KV, start: jax.Array | int) -> KV:
        """Returns the cache with `new` in slots `start` onwards."""
        return KV(*(jax.lax.dynamic_update_slice_in_dim(a, b, start, axis=1) for a, b in zip(self, new)))


class Where(NamedTuple):
    """Where the tokens of one pass are: their rotation, mask bool[B, T, S] over the keys, first cache slot."""

    rotary: ops.Rotary
    mask: jax.Array
    start: jax.Array | int = 0


class Dropout(NamedTuple):
    """Residual dropout in training: rate, and a key per row for this layer."""

    rate: float
    keys: jax.Array


class Block(nn.Module):
    """Attention with grouped queries, then SwiGLU, for the last `read` tokens (None: all; 0: keys and values only)."""

    cfg: LLMConfig
    read: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cache: KV | None, where: Where, drop: Dropout | None = None) -> tuple:
        cfg, linear = self.cfg, functools.partial(params.linear, self)
        before, after = (_plain, params.norm) if cfg.norm_after else (params.norm, _plain)

        h = before(self, "attn_norm", x)
        new = _keys_and_values(self, h, where.rotary)
        kv = new if cache is None else cache.write(new, where.start)
        if self.read == 0:
            return x[:, :0], kv
        turn, mask = where.rotary, where.mask
        if self.read is not None:
            last = slice(-self.read, None)
            x, h, turn, mask = jax.tree.map(lambda a: a[:, last], (x, h, turn, mask))
        y = ops.ATTENTION[cfg.attention](_queries(self, h, turn), kv.k, kv.v, mask)
        y = after(self, "attn_norm", linear("o", "btnh,nhd->btd", y, "heads head_dim embed"))
        x = x + _dropout(y, drop, 0)

        h = before(self, "mlp_norm", x)
        gate, up = (linear(name, "btd,df->btf", h, "embed mlp") for name in ("gate", "up"))
        y = linear("down", "btf,fd->btd", ops.ACTIVATIONS[cfg.activation](gate) * up, "mlp embed")
        x = x + _dropout(after(self, "mlp_norm", y), drop, 1)
        return nn.with_logical_constraint(x, ("batch", "tokens", "act_embed")), kv


def _queries(module: Block, h: jax.Array, turn: ops.Rotary) -> jax.Array:
    q = params.linear(module, "q", "btd,dnh->btnh", h, "embed heads head_dim", bias=module.cfg.qkv_bias)
    return ops.rope(_qk_norm(module, "q_norm", q, "heads"), turn)


def _keys_and_values(module: Block, h: jax.Array, turn: ops.Rotary) -> KV:
    linear = functools.partial(params.linear, module, bias=module.cfg.qkv_bias)
    k, v = (linear(name, "btd,dkh->btkh", h, "embed kv_heads head_dim") for name in ("k", "v"))
    return KV(ops.rope(_qk_norm(module, "k_norm", k, "kv_heads"), turn), v)


def _qk_norm(module: Block, name: str, x: jax.Array, heads: str) -> jax.Array:
    """Normalises per head (qwen3) or over all heads of a token together (olmo)."""
    if module.cfg.qk_norm is None:
        return x
    if module.cfg.qk_norm == "qwen3":
        return params.norm(module, name, x, "head_dim")
    weight = params.declare(module, name, f"{heads} head_dim", params.ones).reshape(-1)
    return ops.rms_norm(x.reshape(*x.shape[:2], -1), weight, module.cfg.norm_eps).reshape(x.shape)


def _plain(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    return x


def _dropout(y: jax.Array, drop: Dropout | None, branch: int) -> jax.Array:
    if drop is None:
        return y
    keys = jax.vmap(lambda key: jax.random.fold_in(key, branch))(drop.keys)
    return ops.dropout(y, drop.rate, keys)


class Embedding(nn.Module):
    """Two tables: the vocabulary, and the extra rows of the image tokens behind it."""

    cfg: LLMConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        table = params.declare(self, "table", "vocab embed")
        extra = params.declare(self, "extra", "extra_vocab embed")
        size = self.cfg.vocab_size
        # Spread over devices by vocabulary alone: a lookup in a table that is cut along its width would gather twice.
        table, extra = (
            nn.with_logical_constraint(a, (word, "act_embed")) for a, word in ((table, "vocab"), (extra, "extra_vocab"))
        )
        rows, special = table[jnp.clip(tokens, 0, size - 1)], extra[jnp.maximum(tokens - size, 0)]
        return jnp.where((tokens >= size)[..., None], special, rows)


class Head(nn.Module):
    """Final norm, and logits over the vocabulary (the extra rows have none)."""

    cfg: LLMConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return params.linear(self, "kernel", "btd,dv->btv", params.norm(self, "norm", x), "embed vocab")


def init(cfg: LLMConfig, key: jax.Array) -> Params:
    """Returns boxed parameters `{embedding, blocks, head}`."""
    keys = jax.random.split(key, 3)
    x, tokens = jnp.zeros((1, 1, cfg.width)), jnp.zeros((1, 1), jnp.int32)
    where = Where(rotary(cfg, tokens), jnp.ones((1, 1, 1), bool))
    return {
        "embedding": params.init(Embedding(cfg), keys[0], tokens),
        "blocks": params.init(Block(cfg), keys[1], x, None, where, layers=cfg.depth),
        "head": params.init(Head(cfg), keys[2], x),
    }


def rotary(cfg: LLMConfig, positions: jax.Array) -> ops.Rotary:
    """Returns the rotation of logical positions i32[B, T]."""
    return ops.rotary(positions, cfg.rope_base, cfg.head_dim)


def embed(cfg: LLMConfig, tree: Params, tokens: jax.Array) -> jax.Array:
    """Looks up [B, T, D]; the id -1 reads row 0."""
    return params.apply(Embedding(cfg), tree["embedding"], tokens)


def logits(cfg: LLMConfig, tree: Params, x: jax.Array) -> jax.Array:
    """Returns f32[B, T, V] from the residual stream after the last block."""
    return params.apply(Head(cfg), tree["head"], x).astype(jnp.float32)


def depth_logits(cfg: LLMConfig, tree: Params, x: jax.Array, first: int, count: int) -> jax.Array:
    """Returns f32[B, T, count], the logits of `count` ids from `first` on, reading only those columns of the head."""
    head = dict(tree["head"], kernel=jax.lax.slice_in_dim(tree["head"]["kernel"], first, first + count, axis=1))
    narrow = LLMConfig(**{**vars(cfg), "vocab_size": count})
    return params.apply(Head(narrow), head, x).astype(jnp.float32)


def forward(
    cfg: LLMConfig,
    tree: Params,
    x: jax.Array,
    where: Where,
    *,
    cache: KV | None = None,
    read: int | None = None,
) -> tuple[jax.Array, KV]:
    """Runs all blocks for inference.

    Args:
      cfg: sizes.
      tree: parameters.
      x: [B, T, D], embedded tokens.
      where: positions, mask over the keys, first cache slot.
      cache: [L, B, S, K, H] to write into and read (or a tuple of layers where those of `tree` are one), or None: the
        tokens attend to themselves.
      read: how many of the last tokens the result is wanted for (None: all); the last block does what that needs.

    Returns:
      The residual stream [B, read, D] after the last block, and keys and values (the written cache) [L, B, S, K, H],
      as a tuple of layers where those of `tree` are one.
    """

    def block(weights: Params, x: jax.Array, cache: KV | None = None) -> tuple[jax.Array, KV]:
        return params.apply(Block(cfg), weights, x, cache, where)

    caches = () if cache is None else (cache,)
    if read is None:
        return params.scan(block, tree["blocks"], x, *caches)
    x, most = params.scan(block, tree["blocks"], x, *caches, stop=cfg.depth - 1)
    last, *old = (params.layer(layers, cfg.depth - 1) for layers in (tree["blocks"], *caches))
    x, final = params.apply(Block(cfg, read), last, x, *(old or [None]), where)
    return x, params.append(most, final)


class _Left(NamedTuple):
    """What a block leaves behind in training."""

    kv: KV
    state: jax.Array | None


def train(
    cfg: LLMConfig,
    tree: Params,
    x: jax.Array,
    where: Where,
    *,
    drop: Dropout | None = None,
    hidden: bool = False,
    remat: params.Policy = None,
) -> tuple[jax.Array, KV, jax.Array | None]:
    """Runs all blocks differentiably, without a cache.

    Args:
      cfg: sizes.
      tree: parameters.
      x: [B, T, D], embedded tokens.
      where: positions and mask of the rows.
      drop: residual dropout with one key per row.
      hidden: also return the residual stream after each block.
      remat: policy of rematerialisation for each block; None saves everything.

    Returns:
      The residual stream after the last block, keys and values [L, B, T, K, H], and [L, B, T, D] or None.
    """

    def block(weights: Params, x: jax.Array, index: jax.Array) -> tuple:
        layer_drop = None
        if drop is not None:
            layer_drop = Dropout(drop.rate, jax.vmap(lambda key: jax.random.fold_in(key, index))(drop.keys))
        x, kv = params.apply(Block(cfg), weights, x, None, where, layer_drop)
        kv = KV(*(nn.with_logical_constraint(a, ("batch", "tokens", "kv_heads", "head_dim")) for a in kv))
        return x, _Left(kv, x if hidden else None)

    x, ys = params.scan(block, tree["blocks"], x, jnp.arange(cfg.depth), remat=remat)
    return x, *params.stacked(ys)
