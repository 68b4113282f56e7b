"""The composition: pictures and tokens to a prefix, the prefix to what the expert reads, noise to actions."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import connector, depth, expert, flow, llm, masks, vit
from molmoact2_jax.nn import params
from molmoact2_jax.nn.ops import Array
from molmoact2_jax.nn.params import Params


class Inputs(NamedTuple):
    """Prompts of a call, padded on the left.

    tokens i32[B, S]; valid bool[B, S]; crops u8[B, I, H, W, 3]; pooling i32[B, F, W] (patch indices into the crops of
    the row, -1 empty, rows of -1 behind the real ones).
    """

    tokens: Array
    valid: Array
    crops: Array
    pooling: Array


class Prefix(NamedTuple):
    """What the decoder has seen: R slots, of which `valid` ones are filled.

    tokens i32[B, R]; valid bool[B, R]; kv [L, B, R, K, H] (or a tuple of layers); last [B, D], the residual stream at
    the newest token; states [L, B, R, D], the residual streams, only for an expert that reads those.
    """

    tokens: jax.Array
    valid: jax.Array
    kv: llm.KV
    last: jax.Array
    states: jax.Array | None = None


class Context(NamedTuple):
    """What the expert reads: kv [L, B, S, N, H] and visible bool[B, S]."""

    kv: llm.KV
    visible: jax.Array


def init(cfg: ModelConfig, key: jax.Array) -> Params:
    """Initialises all towers; leaves are boxed with their words. Source: `model.md` 10."""
    keys = jax.random.split(key, 5)
    tree = {
        "vit": vit.init(cfg.vit, keys[0]),
        "connector": connector.init(cfg.connector, keys[1]),
        "llm": llm.init(cfg.llm, keys[2]),
    }
    if cfg.expert:
        tree["expert"] = expert.init(cfg.expert, keys[3])
    if cfg.expert and cfg.gate:
        tree["gate"] = depth.init(cfg.expert, cfg.gate == "per_layer", cfg.gate_bias, keys[4])
    return tree


def abstract(cfg: ModelConfig) -> tuple[Params, Params]:
    """Returns the tree of shapes and dtypes of the parameters, and the tree of words that name their axes."""
    return params.unbox(jax.eval_shape(lambda: init(cfg, jax.random.key(0))))


def unrolled(tree: Params) -> Params:
    """Returns the parameters with the layers of each tower as plain tuples, which `params.scan` runs without a loop."""
    return {
        name: {**tower, "blocks": params.unrolled(tower["blocks"])} if "blocks" in tower else tower
        for name, tower in tree.items()
    }


def vision(
    cfg: ModelConfig, tree: Params, crops: jax.Array, pooling: jax.Array, remat: params.Policy = None
) -> jax.Array:
    """Encodes u8[B, I, H, W, 3] crops and pools their patches into image tokens [B, F, D]."""
    batch, images = crops.shape[:2]
    patches = vit.patchify(crops.reshape(batch * images, *crops.shape[2:]), cfg.vit)
    patches = patches.astype(tree["vit"]["patches"]["position"].dtype)
    features = vit.encode(cfg.vit, tree["vit"], patches, remat)
    return connector.pool(cfg.connector, tree["connector"], features.reshape(batch, -1, features.shape[-1]), pooling)


def embed(cfg: ModelConfig, tree: Params, tokens: jax.Array, features: jax.Array | None) -> jax.Array:
    """Embeds tokens [B, S, D] and adds the f-th image token of a row to its f-th image-patch id."""
    x = _rows(llm.embed(cfg.llm, tree["llm"], tokens))
    if features is None:
        return x
    patch = tokens == cfg.tokens.image_patch
    index = jnp.clip(jnp.cumsum(patch, axis=1) - 1, 0, features.shape[1] - 1)
    chosen = jnp.take_along_axis(features, index[..., None], axis=1)
    return _rows(x + jnp.where(patch[..., None], chosen, 0).astype(x.dtype))


def _rows(x: jax.Array) -> jax.Array:
    """Keeps activations [B, T, D] spread over devices by rows."""
    return nn.with_logical_constraint(x, ("batch", "tokens", "act_embed"))


def prefill(cfg: ModelConfig, tree: Params, inputs: Inputs, *, room: int = 0, read: int = 0) -> tuple:
    """Runs the decoder over prompts.

    Args:
      cfg: the model.
      tree: parameters.
      inputs: prompts.
      room: free slots behind the prompt.
      read: for how many of the last tokens the residual stream is wanted.

    Returns:
      The `Prefix` (its `last` is zero where nothing is read), and the residual stream [B, read, D].
    """
    tokens, valid, crops, pooling = map(jnp.asarray, inputs)
    x = embed(cfg, tree, tokens, vision(cfg, tree, crops, pooling) if crops.shape[1] else None)
    where = llm.Where(llm.rotary(cfg.llm, masks.positions(valid)), masks.prompt(tokens, valid, cfg))
    if cfg.expert and cfg.expert.conditioning == "hidden":
        x, kv, states = llm.train(cfg.llm, tree["llm"], x, where, hidden=True)
        x = x[:, x.shape[1] - read :]
    else:
        (x, kv), states = llm.forward(cfg.llm, tree["llm"], x, where, read=read), None
    last = x[:, -1] if read else jnp.zeros((x.shape[0], x.shape[2]), x.dtype)
    return reserve(Prefix(tokens, valid, kv, last, states), room), x


def reserve(prefix: Prefix, room: int) -> Prefix:
    """Adds free slots behind a prefix."""
    if room == 0:
        return prefix

    def longer(a: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(a, [(0, room if i == axis % a.ndim else 0) for i in range(a.ndim)])

    kv, states = jax.tree.map(lambda a: longer(a, -3), prefix.kv), jax.tree.map(lambda a: longer(a, -2), prefix.states)
    return Prefix(longer(prefix.tokens, 1), longer(prefix.valid, 1), kv, prefix.last, states)


def context(cfg: ModelConfig, tree: Params, prefix: Prefix) -> Context:
    """Gates and projects what the decoder left behind to what the expert reads. Source: `model.md` 5, 6.1, 6.2."""
    assert cfg.expert is not None
    visible = masks.context(prefix.tokens, prefix.valid, cfg)
    keys, values = sources(params.stacked(prefix.kv), prefix.states)
    if cfg.gate:
        span = masks.depth_span(prefix.tokens, visible, cfg.tokens)
        scale = depth.scales(cfg.expert, tree["gate"], values, visible[:, None], span)[..., None]
        keys, values = keys * scale, values * scale
    return Context(expert.project_context(cfg.expert, tree["expert"], keys, values), visible)


def sources(kv: llm.KV, states: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns what the context projection reads as keys and as values, [L, B, S, C] (paper Table 10)."""
    if states is not None:
        return states, states
    return kv.k.reshape(*kv.k.shape[:3], -1), kv.v.reshape(*kv.v.shape[:3], -1)


def modulation(cfg: ModelConfig, tree: Params, num_steps: int) -> expert.Modulation:
    """Returns the modulation at every time the solver evaluates; it depends on the weights alone."""
    assert cfg.expert is not None
    times = flow.find(flow.SOLVERS, cfg.flow.solver).times(num_steps)
    return expert.modulation(cfg.expert, tree["expert"], jnp.asarray(times))


def act(
    cfg: ModelConfig,
    tree: Params,
    shifts: expert.Modulation,
    ctx: Context,
    noise: jax.Array,
    *,
    channels: jax.Array,
) -> jax.Array:
    """Integrates the flow from noise to a normalised chunk.

    Args:
      cfg: the model.
      tree: parameters.
      shifts: of `modulation`; its number of times gives the number of steps.
      ctx: what the expert reads.
      noise: f32[B, A, C].
      channels: bool[B, C], channels that the robot has; the others stay 0.

    Returns:
      f32[B, A, C], the trajectory at t = 1, before clipping. Source: `model.md` 6.4.
    """
    assert cfg.expert is not None
    network, solver = cfg.expert, flow.find(flow.SOLVERS, cfg.flow.solver)
    num_steps = shifts.final.shape[0] // len(solver.times(1))
    keep = channels[:, None] if cfg.mask_action_dims else jnp.ones_like(channels)[:, None]
    reads = expert.Masks(ctx.visible[:, None])

    def velocity(x: jax.Array, j: jax.Array) -> jax.Array:
        at = expert.Modulation(shifts.blocks[:, None, j][:, :, None], shifts.final[None, None, j])
        v = expert.velocity(network, tree["expert"], x[:, None].astype(at.final.dtype), at, ctx.kv, masks=reads)
        return jnp.where(keep, v[:, 0].astype(x.dtype), 0)

    return flow.integrate(solver, velocity, jnp.where(keep, noise, 0), num_steps)
