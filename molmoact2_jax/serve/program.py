"""The compiled programs: from padded prompts and uint8 crops to un-normalised actions, without a host round trip."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import normalize
from molmoact2_jax.models import decode, expert, molmoact2
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.nn.params import Params


class Robot(NamedTuple):
    """Per row: how to undo the normalisation, and which channels bool[B, C] the robot has (the others stay 0)."""

    undo: normalize.Inverse
    channels: jax.Array


class Call(NamedTuple):
    """Everything that differs between two calls of one program; `draft` and `changed` only with adaptive depth."""

    inputs: Inputs
    robot: Robot | None = None
    noise: jax.Array | None = None
    draft: jax.Array | None = None
    changed: jax.Array | None = None


class Outcome(NamedTuple):
    """What one program returns; None where its kind of call has no such thing.

    trajectory, actions f32[B, A, C]; depth: span tokens decoded freely; codes and passes of the adaptive schedule;
    answer: tokens of the discrete action or text.
    """

    trajectory: jax.Array | None = None
    actions: jax.Array | None = None
    depth: decode.Generated | None = None
    codes: decode.Depth | None = None
    answer: decode.Generated | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What picks a program, besides the shapes of a call.

    Attributes:
      mode: "continuous", "discrete" or "text".
      depth: "off", "adaptive", "full", or "close": fixed codes, of which the model did not end the span at once.
      horizon: steps of a chunk.
      max_tokens: most tokens of a discrete or text answer.
      max_depth_tokens: most tokens of a free depth span, or behind fixed codes.
      widths: positions that a pass of the adaptive schedule may have (`decode.depth_codes`).
    """

    mode: str
    depth: str
    horizon: int = 0
    max_tokens: int = 0
    max_depth_tokens: int = 0
    widths: tuple[int, ...] = ()


def run(cfg: ModelConfig, spec: Spec, params: Params, shifts: expert.Modulation | None, call: Call) -> Outcome:
    """Computes one call.

    Args:
      cfg: the model.
      spec: what kind of call.
      params: all parameters.
      shifts: `molmoact2.modulation`, for continuous actions.
      call: the arguments.
    """
    answers = spec.mode != "continuous"
    prefix, depth, codes = _prefix(cfg, spec, params, call, answers)
    if answers:
        start = prefix.tokens.shape[1]
        prefix = molmoact2.reserve(prefix, spec.max_tokens)
        _, answer = decode.greedy(cfg, params, prefix, start, stop=cfg.tokens.eos, limit=spec.max_tokens)
        return Outcome(depth=depth, codes=codes, answer=answer)
    ctx = molmoact2.context(cfg, params, prefix)
    trajectory = molmoact2.act(cfg, params, shifts, ctx, call.noise, call.robot.channels)
    actions = jax.vmap(normalize.unnormalize)(trajectory, call.robot.undo)
    return Outcome(trajectory, jnp.where(call.robot.channels[:, None], actions, 0), depth, codes)


def _prefix(cfg: ModelConfig, spec: Spec, params: Params, call: Call, answers: bool) -> tuple:
    """Returns the prefix that actions follow, the free depth tokens and the adaptive codes (None where there are none)."""
    if spec.depth == "off":
        return molmoact2.prefill(cfg, params, call.inputs, read=int(answers))[0], None, None
    if spec.depth == "adaptive":
        prefix, codes = decode.depth_codes(cfg, params, call.inputs, call.draft, call.changed, spec.widths)
        return prefix, None, codes
    inputs = call.inputs if spec.depth == "full" else _behind_codes(cfg, call)
    prefix, _ = molmoact2.prefill(cfg, params, inputs, room=spec.max_depth_tokens, read=1)
    start, stop = inputs.tokens.shape[1], cfg.tokens.depth_end
    prefix, depth = decode.greedy(cfg, params, prefix, start, stop=stop, limit=spec.max_depth_tokens)
    return prefix, depth, None


def _behind_codes(cfg: ModelConfig, call: Call) -> Inputs:
    span = decode.span_tokens(cfg, call.draft)[:, :-1]
    return call.inputs._replace(
        tokens=jnp.concatenate([call.inputs.tokens, span], axis=1),
        valid=jnp.concatenate([call.inputs.valid, jnp.ones(span.shape, bool)], axis=1),
    )


def abstract_call(cfg: ModelConfig, spec: Spec, batch: int, tokens: int, crops: int, pooling: tuple[int, int]) -> Call:
    """Returns the shapes of a call, from which a program can be compiled before any data is there."""

    def s(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    side = cfg.vit.image_size
    i32, f32 = jnp.int32, jnp.float32
    inputs = Inputs(s(i32, tokens), s(bool, tokens), s(jnp.uint8, crops, side, side, 3), s(i32, *pooling))
    if spec.mode == "text":
        return Call(inputs)
    c, cells = cfg.action_dim, cfg.num_depth_codes
    robot = noise = draft = changed = None
    if spec.mode == "continuous":
        undo = normalize.Inverse(s(f32), s(f32), s(f32, c), s(f32, c), s(bool, c), s(f32, c), s(f32, c))
        robot = Robot(undo, s(bool, c))
        noise = s(f32, spec.horizon, c)
    if spec.depth in ("adaptive", "close"):
        draft, changed = s(i32, cells), s(bool, cells)
    return Call(inputs, robot, noise, draft, changed)
