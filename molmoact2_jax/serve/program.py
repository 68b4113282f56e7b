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
from molmoact2_jax.nn.ops import Array
from molmoact2_jax.nn.params import Params


class Robot(NamedTuple):
    """Per row: how to undo the normalisation, and which channels bool[B, C] the robot has (the others stay 0)."""

    undo: normalize.Inverse
    channels: Array


class Call(NamedTuple):
    """Everything that differs between two calls of one program; `draft` and `changed` only with adaptive depth."""

    inputs: Inputs
    robot: Robot | None = None
    noise: Array | None = None
    draft: Array | None = None
    changed: Array | None = None


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
    trajectory, actions = _act(cfg, params, shifts, prefix, call)
    return Outcome(trajectory, actions, depth, codes)


def _act(
    cfg: ModelConfig, params: Params, shifts: expert.Modulation | None, prefix: molmoact2.Prefix, call: Call
) -> tuple[jax.Array, jax.Array]:
    """Returns the normalised trajectory and the actions in robot units, f32[B, A, C]."""
    assert shifts is not None
    assert call.robot is not None
    noise, channels = jnp.asarray(call.noise), jnp.asarray(call.robot.channels)
    trajectory = molmoact2.act(cfg, params, shifts, molmoact2.context(cfg, params, prefix), noise, channels=channels)
    actions = jax.vmap(normalize.unnormalize)(trajectory, call.robot.undo)
    return trajectory, jnp.where(channels[:, None], actions, 0)


def _prefix(cfg: ModelConfig, spec: Spec, params: Params, call: Call, answers: bool) -> tuple:
    """Returns the prefix that actions follow, free depth tokens, and adaptive codes (None where there are none)."""
    if spec.depth == "off":
        return molmoact2.prefill(cfg, params, call.inputs, read=int(answers))[0], None, None
    if spec.depth == "adaptive":
        draft, changed = jnp.asarray(call.draft), jnp.asarray(call.changed)
        prefix, codes = decode.depth_codes(cfg, params, call.inputs, draft, changed, widths=spec.widths)
        return prefix, None, codes
    inputs = call.inputs if spec.depth == "full" else _behind_codes(cfg, call)
    prefix, _ = molmoact2.prefill(cfg, params, inputs, room=spec.max_depth_tokens, read=1)
    start, stop = inputs.tokens.shape[1], cfg.tokens.depth.end
    prefix, depth = decode.greedy(cfg, params, prefix, start, stop=stop, limit=spec.max_depth_tokens)
    return prefix, depth, None


def _behind_codes(cfg: ModelConfig, call: Call) -> Inputs:
    span = decode.span_tokens(cfg, jnp.asarray(call.draft))[:, :-1]
    return call.inputs._replace(
        tokens=jnp.concatenate([call.inputs.tokens, span], axis=1),
        valid=jnp.concatenate([call.inputs.valid, jnp.ones(span.shape, bool)], axis=1),
    )
