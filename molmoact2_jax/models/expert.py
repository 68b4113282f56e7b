"""Flow-matching action expert: one block per decoder layer, reading that layer's context. Source: `model.md` 6."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import ExpertConfig
from molmoact2_jax.models.llm import KV
from molmoact2_jax.nn import ops, params
from molmoact2_jax.nn.params import Params


class Modulation(NamedTuple):
    """Shifts, scales and gates at J flow times: [L, J, 9, E] for the blocks, [J, 2, E] for the last layer."""

    blocks: jax.Array
    final: jax.Array


class Masks(NamedTuple):
    """Who may be read: context bool[B, G, S] by each chunk, and steps bool[B, G, A] inside the horizon (None: all)."""

    context: jax.Array
    steps: jax.Array | None = None


class Times(nn.Module):
    """Time embedding and the modulation of every layer, which depend on nothing but weights and time."""

    cfg: ExpertConfig

    @nn.compact
    def __call__(self, times: jax.Array) -> Modulation:
        linear = functools.partial(params.linear, self, bias=True)
        kernel = params.declare(self, "modulation", "layers cond shifts embed", params.zeros)
        h = _sinusoid(times, self.cfg.time_width).astype(kernel.dtype)  # angles need float32, all that follows does not
        h = linear("first", "bt,td->bd", h, "time embed", init=params.xavier())
        h = linear("second", "bd,de->be", jax.nn.silu(h), "embed cond", init=params.xavier())
        h = jax.nn.silu(h)
        bias = params.declare(self, "modulation_bias", "layers shifts embed", params.zeros)
        blocks = jnp.einsum("bd,ldme->lbme", h, kernel) + bias[:, None].astype(h.dtype)
        final = linear("final", "bd,dme->bme", h, "cond final_shifts embed", init=params.zeros)
        return Modulation(blocks, final)


class Context(nn.Module):
    """Projects what a decoder layer offers to the keys and values of the cross-attention; shared by all layers."""

    cfg: ExpertConfig

    @nn.compact
    def __call__(self, keys: jax.Array, values: jax.Array) -> KV:
        cfg = self.cfg
        per_head = cfg.conditioning == "kv_heads"
        project = _per_head if per_head else _flat
        k, v = project(self, "k", keys), project(self, "v", values)
        if cfg.context_norm:
            k, v = (ops.rms_norm(a.reshape(*a.shape[:2], -1), None).reshape(a.shape) for a in (k, v))
        return KV(ops.rms_norm(k, None, cfg.qk_norm_eps) if cfg.qk_norm else k, v)


class Block(nn.Module):
    """Self-attention over the steps of a chunk, cross-attention to the context, SwiGLU; each modulated by time."""

    cfg: ExpertConfig

    @nn.compact
    def __call__(self, x: jax.Array, shifts: jax.Array, context: KV, masks: Masks) -> jax.Array:
        shift = [shifts[:, :, i : i + 1] for i in range(9)]  # each [B or 1, G or 1, 1, E]
        x = x + shift[2] * _self_attend(self, _modulate(x, *shift[:2]), masks.steps)
        x = x + shift[5] * _cross_attend(self, _modulate(x, *shift[3:5]), context, masks.context)
        x = x + shift[8] * _mlp(self, _modulate(x, *shift[6:8]))
        return _hide(x, masks.steps)


def _self_attend(module: Block, h: jax.Array, steps: jax.Array | None) -> jax.Array:
    cfg, (batch, groups, length, width) = module.cfg, h.shape
    h = h.reshape(batch * groups, length, width)
    q, k, v = (_heads(module, name, h) for name in ("self_q", "self_k", "self_v"))
    if cfg.qk_norm:
        q, k = (ops.rms_norm(a, None, cfg.qk_norm_eps) for a in (q, k))
    if cfg.rope:
        turn = ops.rotary(jnp.arange(length)[None], 1e4, cfg.head_dim)
        q, k = (ops.rope(a, turn) for a in (q, k))
    y = ops.ATTENTION[cfg.attention](q, k, v, _step_mask(cfg, length, steps))
    return _out(module, "self_o", y).reshape(batch, groups, length, width)


def _cross_attend(module: Block, h: jax.Array, context: KV, visible: jax.Array) -> jax.Array:
    cfg, (batch, groups, length, width) = module.cfg, h.shape
    # The chunks and samples of a row share its context: they are one axis of queries, and nothing is repeated.
    q = _heads(module, "cross_q", h.reshape(batch, groups * length, width))
    if cfg.qk_norm:
        q = ops.rms_norm(q, None, cfg.qk_norm_eps)
    mask = visible if groups == 1 else jnp.repeat(visible, length, axis=1)
    y = ops.ATTENTION[cfg.attention](q, context.k, context.v, mask)
    return _out(module, "cross_o", y).reshape(h.shape)


def _mlp(module: Block, h: jax.Array) -> jax.Array:
    linear = functools.partial(params.linear, module, bias=True)
    gate, up = (linear(n, "bgad,df->bgaf", h, "embed mlp", init=params.xavier()) for n in ("gate", "up"))
    return linear("down", "bgaf,fd->bgad", jax.nn.silu(gate) * up, "mlp embed", init=_residual(module.cfg))


class Embed(nn.Module):
    """Embeds action channels."""

    cfg: ExpertConfig

    @nn.compact
    def __call__(self, actions: jax.Array) -> jax.Array:
        return params.linear(self, "kernel", "bgac,cd->bgad", actions, "action embed", bias=True, init=params.xavier())


class Final(nn.Module):
    """Reads the velocity; zero at initialisation."""

    cfg: ExpertConfig

    @nn.compact
    def __call__(self, x: jax.Array, shifts: jax.Array) -> jax.Array:
        h = _modulate(x, shifts[:, :, :1], shifts[:, :, 1:])
        return params.linear(self, "kernel", "bgad,dc->bgac", h, "embed action", bias=True, init=params.zeros)


def init(cfg: ExpertConfig, key: jax.Array) -> Params:
    """Returns boxed parameters `{times, context, blocks, embed, final}` of an expert whose velocity is zero."""
    keys = jax.random.split(key, 5)
    x, kv = jnp.zeros((1, 1, 1, cfg.width)), jnp.zeros((1, 1, cfg.num_heads, cfg.head_dim))
    shifts, masks = jnp.zeros((1, 1, 9, cfg.width)), Masks(jnp.ones((1, 1, 1), bool))
    source = jnp.zeros((1, 1, cfg.context_width))
    return {
        "times": params.init(Times(cfg), keys[0], jnp.zeros(1)),
        "context": params.init(Context(cfg), keys[1], source, source),
        "blocks": params.init(Block(cfg), keys[2], x, shifts, KV(kv, kv), masks, layers=cfg.depth),
        "embed": params.init(Embed(cfg), keys[3], jnp.zeros((1, 1, 1, cfg.action_dim))),
        "final": params.init(Final(cfg), keys[4], x, shifts[:, :, :2]),
    }


def modulation(cfg: ExpertConfig, tree: Params, times: jax.Array) -> Modulation:
    """Returns the modulation at f32[J] flow times."""
    return params.apply(Times(cfg), tree["times"], times)


def project_context(cfg: ExpertConfig, tree: Params, keys: jax.Array, values: jax.Array) -> KV:
    """Projects [L, B, S, context_width] of all layers at once to keys and values [L, B, S, N, H]."""
    depth, batch = keys.shape[:2]
    rows = ("layers", "batch", "tokens", "act_embed")
    sources = (nn.with_logical_constraint(a, rows) for a in (keys, values))
    kv = params.apply(Context(cfg), tree["context"], *(a.reshape(depth * batch, *a.shape[2:]) for a in sources))
    whole = (a.reshape(depth, batch, *a.shape[1:]) for a in kv)
    return KV(*(nn.with_logical_constraint(a, ("layers", "batch", "tokens", "heads", "head_dim")) for a in whole))


def velocity(
    cfg: ExpertConfig,
    tree: Params,
    x: jax.Array,
    shifts: Modulation,
    context: KV,
    *,
    masks: Masks,
    remat: params.Policy = None,
) -> jax.Array:
    """Predicts the velocity of noisy chunks.

    Args:
      cfg: sizes.
      tree: parameters.
      x: [B, G, A, C], G chunks (or flow samples of chunks) per row of context.
      shifts: blocks [L, B or 1, G or 1, 9, E] and final [B or 1, G or 1, 2, E], at the time of each chunk.
      context: [L, B, S, N, H].
      masks: visible context and valid steps.
      remat: policy of rematerialisation for each block.

    Returns:
      [B, G, A, C], zero on invalid steps.
    """
    h = _hide(params.apply(Embed(cfg), tree["embed"], x), masks.steps)

    def block(weights: Params, h: jax.Array, shift: jax.Array, kv: KV) -> tuple[jax.Array, None]:
        return params.apply(Block(cfg), weights, h, shift, kv, masks), None

    h, _ = params.scan(block, tree["blocks"], h, shifts.blocks, context, remat=remat)
    return _hide(params.apply(Final(cfg), tree["final"], h, shifts.final), masks.steps)


def _sinusoid(times: jax.Array, width: int) -> jax.Array:
    half = width // 2
    angles = times[:, None].astype(jnp.float32) * jnp.exp(jnp.arange(half) * (-math.log(10000) / (half - 1)))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return ops.rms_norm(x) * (1 + scale) + shift


def _hide(x: jax.Array, steps: jax.Array | None) -> jax.Array:
    return x if steps is None else jnp.where(steps[..., None], x, 0)


def _step_mask(cfg: ExpertConfig, length: int, steps: jax.Array | None) -> jax.Array | None:
    mask = jnp.tril(jnp.ones((1, length, length), bool)) if cfg.causal else None
    if steps is None:
        return mask
    valid = steps.reshape(-1, 1, length)
    return valid if mask is None else mask & valid


def _heads(module: Block, name: str, h: jax.Array) -> jax.Array:
    return params.linear(module, name, "btd,dnh->btnh", h, "embed heads head_dim", bias=True, init=params.xavier())


def _out(module: Block, name: str, y: jax.Array) -> jax.Array:
    init = _residual(module.cfg, inputs=2)
    return params.linear(module, name, "btnh,nhd->btd", y, "heads head_dim embed", bias=True, init=init)


def _residual(cfg: ExpertConfig, inputs: int = 1) -> params.Init:
    return params.xavier((2 * cfg.depth) ** -0.5, inputs)


def _flat(module: Context, name: str, source: jax.Array) -> jax.Array:
    init = params.uniform(module.cfg.context_width**-0.5)
    return params.linear(module, name, "btc,cnh->btnh", source, "context_embed heads head_dim", init=init)


def _per_head(module: Context, name: str, source: jax.Array) -> jax.Array:
    init = params.uniform(module.cfg.dims["context_head_dim"] ** -0.5)
    kernel = params.declare(module, name, "context_heads context_head_dim head_dim", init)
    heads = source.reshape(*source.shape[:2], *kernel.shape[:2])
    return jnp.einsum("btnc,nch->btnh", heads, kernel.astype(source.dtype))
