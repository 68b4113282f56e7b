"""The phases of an action call, each compiled apart and fed with what the one before it left on the device.

Programs compiled apart lose what the compiler fuses across them and pay a launch each: their sum is near the whole, not
equal to it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import normalize
from molmoact2_jax.models import decode, molmoact2
from molmoact2_jax.models.molmoact2 import Inputs, Prefix
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import program

Work = dict[str, Callable[[], Any]]


class _Compiler:
    """Compiles functions for given arguments, and notes the seconds it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        compiled = jax.jit(function, **options).lower(*args).compile()
        self.seconds[name] = time.perf_counter() - begin
        return compiled


def work(cfg: ModelConfig, params: Params, call: program.Call, num_steps: int) -> tuple[Work, dict[str, float]]:
    """Compiles vision, decoder, (one depth pass,) context, flow and post.

    Args:
      cfg: the model.
      params: its weights, as the runner holds them.
      call: continuous; with a draft, its depth is adaptive.
      num_steps: evaluations of the flow.

    Returns:
      Functions that run the phases once, in order, and the seconds that each took to compile.
    """
    made, tree = _Compiler(), functools.partial(_towers, params)
    vision, prefix = _prefix(cfg, params, call, made)
    context = made("context", functools.partial(molmoact2.context, cfg), tree("expert", "gate"), prefix)
    ctx = context(tree("expert", "gate"), prefix)
    modulation = jax.jit(functools.partial(molmoact2.modulation, cfg), static_argnums=1)
    shifts, robot = modulation(tree("expert"), num_steps), call.robot
    assert robot is not None

    def act(weights: Params, shifts: Any, ctx: Any, noise: Any, channels: Any) -> jax.Array:
        return molmoact2.act(cfg, weights, shifts, ctx, jnp.asarray(noise), channels=jnp.asarray(channels))

    arguments = (tree("expert"), shifts, ctx, call.noise, robot.channels)
    flow = made("flow", act, *arguments)
    chunk = flow(*arguments)
    post = made("post", _post, chunk, robot.undo)
    phases: Work = {
        **vision,
        "context": lambda: context(tree("expert", "gate"), prefix),
        "flow": lambda: flow(*arguments),
        "post": lambda: jax.device_get(post(chunk, robot.undo)),
    }
    return phases, made.seconds


def _towers(params: Params, *names: str) -> Params:
    return {name: params[name] for name in names if name in params}


def _post(chunk: jax.Array, undo: normalize.Inverse) -> tuple[jax.Array, jax.Array]:
    return chunk, jax.vmap(normalize.unnormalize)(chunk, undo)


def _prefix(cfg: ModelConfig, params: Params, call: program.Call, made: _Compiler) -> tuple[Work, Prefix]:
    """Compiles what stands before the expert; returns its phases, and the prefix that they leave."""
    pictures = (_towers(params, "vit", "connector"), call.inputs.crops, call.inputs.pooling)
    vision = made("vision", functools.partial(molmoact2.vision, cfg), *pictures)
    prompt, read = _prompt(cfg, call), 0 if call.draft is None else cfg.num_depth_codes + 2

    def decode_prompt(tree: Params, prompt: Inputs) -> tuple[Prefix, jax.Array]:
        return molmoact2.prefill(cfg, tree, prompt, read=read)

    tree = _towers(params, "llm")
    decoder = made("decoder", decode_prompt, tree, prompt)
    prefix, _ = decoder(tree, prompt)
    phases: Work = {"vision": lambda: vision(*pictures), "decoder": lambda: decoder(tree, prompt)}
    if call.draft is not None:
        phases["depth pass"] = _depth_pass(cfg, tree, prefix, read, made)
    return phases, prefix


def _prompt(cfg: ModelConfig, call: program.Call) -> Inputs:
    """Returns the prompt without its pictures, which `vision` reads; with a draft, the span of codes behind it."""
    bare = call.inputs._replace(crops=call.inputs.crops[:, :0], pooling=call.inputs.pooling[:, :0])
    if call.draft is None:
        return bare
    span = np.asarray(decode.span_tokens(cfg, jnp.asarray(call.draft)))
    valid = np.concatenate([bare.valid, np.ones(span.shape, bool)], axis=1)
    return bare._replace(tokens=np.concatenate([bare.tokens, span], axis=1), valid=valid)


def _depth_pass(cfg: ModelConfig, tree: Params, prefix: Prefix, width: int, made: _Compiler) -> Callable[[], Any]:
    """One pass over all positions of the span, the cache written in place as in the loop of a call."""
    start = prefix.tokens.shape[1] - width

    def again(tree: Params, prefix: Prefix) -> Prefix:
        tokens, valid = prefix.tokens[:, start:], prefix.valid[:, start:]
        return decode.feed(cfg, tree, prefix, tokens, valid, start=start)

    compiled = made("depth pass", again, tree, prefix, donate_argnums=1)
    held = [jax.tree.map(jnp.copy, prefix)]

    def run() -> Prefix:
        held[0] = compiled(tree, held[0])
        return held[0]

    return run
