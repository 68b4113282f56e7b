"""The training objective: language loss and flow loss of packed rows, summed. Source: `training.md` 2."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from molmoact2_jax.batch import SEGMENT, STYLES
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import depth, expert, flow, llm, masks, molmoact2
from molmoact2_jax.nn import lora
from molmoact2_jax.nn.params import Params
from molmoact2_jax.train import head, streams

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, and how it is computed.

    Attributes:
      objective: name in `flow.OBJECTIVES`, or "package.module:function".
      average: name in `flow.AVERAGES`: how steps and channels of a chunk are averaged.
      num_samples: K flow samples per chunk, which share one prefix (post-training 4, fine-tuning 8).
      insulate: whether the flow loss stops at the decoder's keys and values (knowledge insulation).
      gate_pooling: what the depth gate averages over: "example" (paper eq. 11) or "row" (released code).
      depth_noise: probability that a depth code of the input is replaced by a random one.
      dropout: of the decoder's residual branches.
      z_weight: weight of the squared log-normaliser.
      head_chunk: supervised positions of a row whose logits exist at a time.
      remat_vit, remat_llm, remat_expert: names in `REMAT`, what each block saves for the backward pass.
      unroll: compile every layer by itself instead of a loop over them: faster where the model is small.
    """

    objective: str = "flow_matching"
    average: str = "released"
    num_samples: int = 8
    insulate: bool = False
    gate_pooling: str = "example"
    depth_noise: float = 0.0
    dropout: float = 0.1
    z_weight: float = 1e-4
    head_chunk: int = 256
    remat_vit: str = "full"
    remat_llm: str = "full"
    remat_expert: str = "full"
    unroll: bool = False

    def __post_init__(self) -> None:
        flow.find(flow.OBJECTIVES, self.objective)
        flow.find(flow.AVERAGES, self.average)
        for name in ("remat_vit", "remat_llm", "remat_expert"):
            if getattr(self, name) not in REMAT:
                raise ValueError(f"loss.{name}: {getattr(self, name)!r}, expected one of {sorted(REMAT)}.")
        if self.gate_pooling not in ("example", "row"):
            raise ValueError(f"loss.gate_pooling: {self.gate_pooling!r}, expected 'example' or 'row'.")


class Problem(NamedTuple):
    """What is minimised over weights: the loss of a model."""

    model: ModelConfig
    loss: LossConfig


class Rows(NamedTuple):
    """`batch.Batch` on the device; the fields are described there."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    targets: jax.Array
    weights: jax.Array
    styles: jax.Array
    crops: jax.Array
    pooling: jax.Array
    actions: jax.Array
    action_valid: jax.Array
    channel_valid: jax.Array
    chunk_example: jax.Array
    row: jax.Array


class Totals(NamedTuple):
    """What losses are divided by, over all rows of all processes: weight of targets, number of chunks (at least 1)."""

    weight: jax.Array
    chunks: jax.Array


class Read(NamedTuple):
    """What one pass of the decoder leaves: residual stream [B, T, D], what each of C chunks reads, and metrics."""

    x: jax.Array
    context: llm.KV | None
    visible: jax.Array | None
    metrics: dict[str, jax.Array]


class Chunks(NamedTuple):
    """Chunks of rows: visible bool[..., T], actions f32[..., A, N], valid bool[..., A], channels bool[..., N]."""

    visible: jax.Array
    actions: jax.Array
    valid: jax.Array
    channels: jax.Array


def totals(rows: Rows) -> Totals:
    """Counts over a whole batch; take them before slicing it for accumulation."""
    weight = jnp.sum(rows.weights)
    return Totals(jnp.where(weight > 0, weight, 1.0), jnp.maximum(jnp.sum(rows.chunk_example >= 0), 1))


def total(
    problem: Problem, params: Params, rows: Rows, over: Totals, key: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss of some rows, as their share of the whole batch's.

    Args:
      problem: the model and its loss.
      params: weights in the compute dtype.
      rows: packed rows; crops already augmented.
      over: `totals` of the whole batch.
      key: random key of the step: flow samples, dropout and depth noise fold in the global row. None: neither dropout
        nor noise on codes, and flow samples that depend on the row alone.

    Returns:
      f32[], which adds up over slices of rows, and metrics that are sums over rows too.
    """
    cfg, loss = problem
    if loss.unroll:
        params = molmoact2.unrolled(params)
    tokens, noise = (rows.tokens, {}) if key is None else noisy_codes(cfg, loss.depth_noise, rows, key)
    read = read_rows(problem, params, rows._replace(tokens=tokens), key)
    spoken, metrics = language(problem, params, read.x, rows, over, key=key)
    metrics |= noise | read.metrics
    if cfg.expert is None or rows.actions.shape[1] == 0:
        return spoken, metrics
    flowed, more = _flow(problem, params, read, rows, jax.random.key(0) if key is None else key)
    flowed = flowed / over.chunks
    return spoken + flowed, {**metrics, **more, "loss/flow": flowed}


def read_rows(problem: Problem, params: Params, rows: Rows, key: jax.Array | None) -> Read:
    """Runs the decoder over packed rows once, and projects what its chunks read, once per row."""
    cfg, loss = problem
    features, adapted = None, params
    if key is not None:
        towers = {name: params[name] for name in ("vit", "connector", "llm")}
        adapted = lora.with_keys(towers, streams.row_keys(key, rows.row, "adapters"))
    if rows.crops.shape[1]:
        features = molmoact2.vision(cfg, adapted, rows.crops, rows.pooling, REMAT[loss.remat_vit])
    x = molmoact2.embed(cfg, params, rows.tokens, features)
    family = masks.image_family(rows.tokens, cfg.tokens) if cfg.bidirectional_images else None
    where = llm.Where(llm.rotary(cfg.llm, rows.positions), masks.packed(rows.segments, family))
    drop = None
    if key is not None and loss.dropout:
        drop = llm.Dropout(loss.dropout, streams.row_keys(key, rows.row, "dropout"))
    hidden = cfg.expert is not None and cfg.expert.conditioning == "hidden"
    x, kv, states = llm.train(cfg.llm, adapted["llm"], x, where, drop=drop, hidden=hidden, remat=REMAT[loss.remat_llm])
    if cfg.expert is None or rows.actions.shape[1] == 0:
        return Read(x, None, None, {})
    return Read(x, *_context(problem, params, rows, *molmoact2.sources(kv, states)))


def _context(
    problem: Problem, params: Params, rows: Rows, keys: jax.Array, values: jax.Array
) -> tuple[llm.KV, jax.Array, dict[str, jax.Array]]:
    """Gates, insulates and projects; returns [L, B, T, N, H], what each chunk may read, bool[B, C, T], and metrics."""
    cfg, loss = problem
    metrics: dict[str, jax.Array] = {}
    assert cfg.expert is not None
    visible = masks.context(rows.tokens, rows.segments >= 0, cfg, rows.segments)
    own = visible[:, None] & (rows.segments[:, None] // SEGMENT == rows.chunk_example[..., None])
    own &= rows.chunk_example[..., None] >= 0
    if cfg.gate:
        span = masks.depth_span(rows.tokens, visible, cfg.tokens)
        groups = own if loss.gate_pooling == "example" else visible[:, None]
        scale = depth.scales(cfg.expert, params["gate"], values, groups, span)
        keys, values = keys * scale[..., None], values * scale[..., None]
        gated = own.any(axis=1) & span
        opened = jnp.where(gated, scale.astype(jnp.float32).mean(axis=0), 0)
        metrics = {"sum/gate/mean": opened.sum(), "sum/gated": gated.sum()}
    if loss.insulate:
        keys, values = jax.lax.stop_gradient((keys, values))
    return expert.project_context(cfg.expert, params["expert"], keys, values), own, metrics


def language(
    problem: Problem, params: Params, x: jax.Array, rows: Rows, over: Totals, *, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums the language loss over the residual stream after the last block; metrics are sums too."""
    cfg, loss = problem
    weights = rows.weights / over.weight

    def logits(tree: Params, part: jax.Array, keys: jax.Array | None) -> jax.Array:
        return llm.logits(cfg.llm, lora.with_keys({"head": tree}, keys), part)

    method, targets = head.Method(logits, loss.z_weight, loss.head_chunk), head.Targets(rows.targets, weights)
    keys = None if key is None else streams.row_keys(key, rows.row, "head")
    value, per_token = head.language_loss(method, params["llm"]["head"], x, targets, keys)
    metrics = {
        "loss/language": value,
        "loss/entropy": jnp.sum(weights * per_token.entropy),
        "loss/z": loss.z_weight * jnp.sum(weights * per_token.square),
        "accuracy": jnp.sum(weights * per_token.hit),
    }
    for index, style in enumerate(STYLES):
        chosen = jnp.where(rows.styles == index, rows.weights, 0)
        metrics[f"sum/entropy/{style}"] = jnp.sum(chosen * per_token.entropy)
        metrics[f"sum/weight/{style}"] = jnp.sum(chosen)
    return value, metrics


def _flow(
    problem: Problem, params: Params, read: Read, rows: Rows, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums the loss of all chunks. Chunks and samples share the context of their row; none is repeated."""
    cfg, loss = problem
    objective, average = flow.find(flow.OBJECTIVES, loss.objective), flow.find(flow.AVERAGES, loss.average)

    def errors_of(context: llm.KV, one: Chunks, key: jax.Array):
        velocity = chunk_velocity(problem, params, context, one.visible, one.valid)
        channels = one.channels if cfg.mask_action_dims else jnp.ones_like(one.channels)
        return flow.chunk_errors(
            objective, key, one.actions, velocity, cfg.flow,
            valid=one.valid, channels=channels, num_samples=loss.num_samples,
        )  # fmt: skip

    assert read.context is not None and read.visible is not None  # noqa: PT018
    keys = jax.vmap(lambda k: jax.random.split(k, rows.actions.shape[1]))(streams.row_keys(key, rows.row, "flow"))
    chunks = Chunks(read.visible, rows.actions, rows.action_valid, rows.channel_valid)
    per_row = jax.vmap(errors_of, in_axes=(None, 0, 0))
    errors, metrics = jax.vmap(per_row, in_axes=(1, 0, 0))(read.context, chunks, keys)
    channels = rows.channel_valid if cfg.mask_action_dims else jnp.ones_like(rows.channel_valid)
    real = rows.chunk_example >= 0
    losses = jnp.where(real, average(errors, rows.action_valid, channels), 0)
    means = {f"sum/flow/{name}": jnp.sum(jnp.where(real, value.mean(axis=-1), 0)) for name, value in metrics.items()}
    return losses.sum(), {**means, "sum/chunks": real.sum()}


def chunk_velocity(
    problem: Problem, params: Params, context: llm.KV, visible: jax.Array, valid: jax.Array
) -> flow.Velocity:
    """Returns the velocity field of one chunk, `(x f32[A, N], t f32[]) -> f32[A, N]`.

    Args:
      problem: the model and its loss.
      params: weights.
      context: [L, T, N, H] of the chunk's row.
      visible: bool[T], what this chunk may read.
      valid: bool[A], steps inside the robot's horizon.
    """
    cfg, loss = problem
    assert cfg.expert is not None
    sizes, tree, kv = cfg.expert, params["expert"], llm.KV(*(a[:, None] for a in context))
    reads = expert.Masks(visible[None, None], valid[None, None])

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        shifts = expert.modulation(sizes, tree, t[None])
        at = expert.Modulation(shifts.blocks[:, :, None], shifts.final[:, None])
        x = x[None, None].astype(shifts.final.dtype)
        v = expert.velocity(sizes, tree, x, at, kv, masks=reads, remat=REMAT[loss.remat_expert])
        return v[0, 0].astype(jnp.float32)

    return velocity


def noisy_codes(cfg: ModelConfig, rate: float, rows: Rows, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Replaces depth codes inside spans by random ones with probability `rate`. Source: `io.md` 6.7.

    Returns:
      Input tokens i32[B, T] (targets stay as they are), and metrics: sums over codes inside spans.
    """
    ids = cfg.tokens
    if not rate or ids.depth_first is None:
        return rows.tokens, {}
    first = ids.depth_first
    codes = (rows.tokens >= first) & (rows.tokens < first + ids.num_depths)
    codes &= masks.spans(rows.tokens == ids.depth.start, rows.tokens == ids.depth.end, rows.segments)

    def draw(key: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        hit, code = jax.random.split(key)
        drawn = jax.random.randint(code, tokens.shape, 0, ids.num_depths, tokens.dtype)
        return jax.random.bernoulli(hit, rate, tokens.shape), first + drawn

    hit, drawn = jax.vmap(draw)(streams.row_keys(key, rows.row, "codes"), rows.tokens)
    replaced = hit & codes
    metrics = {"sum/noise/replaced": replaced.sum(), "sum/codes": codes.sum()}
    return jnp.where(replaced, drawn, rows.tokens), metrics
