"""Compares every stage with arrays that the released implementation recorded. Source: `golden/README.md`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import normalize
from molmoact2_jax.eval import parity_depth, parity_host
from molmoact2_jax.eval.golden import Oracle, Row
from molmoact2_jax.models import llm, masks, molmoact2
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.nn import params as params_lib
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import observe
from molmoact2_jax.serve.observe import Row as PromptRow
from molmoact2_jax.serve.records import DepthDecodeError
from molmoact2_jax.text.actions import ActionDecodeError

# recorded arrays that go into a computation, by the start of the last word of their name
_INPUTS = ("image", "state", "noise", "previous_", "attention_mask", "position_ids", "target_actions")
_log = logging.getLogger(__name__)


def rows(oracle: Oracle) -> Iterator[Row]:
    """Yields a row for every recorded array that there is a check for, training where its extra is installed."""
    yield from inference_rows(oracle)
    try:
        from molmoact2_jax.eval import train_parity
    except ModuleNotFoundError as error:
        _log.warning("train/*: not compared, %s is not installed. pip install 'molmoact2-jax[train]'", error.name)
        return
    yield from train_parity.rows(oracle)


def inference_rows(oracle: Oracle) -> Iterator[Row]:
    """Yields the rows of everything from raw observations to actions."""
    for index in range(len(oracle.cases)):
        yield from case_rows(oracle, index)
    yield from _batch(oracle)
    yield from _visible(oracle)
    yield from parity_host.rows(oracle)


def case_rows(oracle: Oracle, index: int) -> Iterator[Row]:
    """Yields the rows of one case."""
    yield from _inputs(oracle, index)
    yield from _stages(oracle, index)
    yield from _guarded(f"case{index}/tokens_discrete", _discrete(oracle, index))
    yield from _guarded(f"case{index}/depth", parity_depth.rows(oracle, index))


def _guarded(name: str, found: Iterator[Row]) -> Iterator[Row]:
    """Turns tokens that cannot be decoded, where the recorded ones could, into a row that fails."""
    try:
        yield from found
    except (ActionDecodeError, DepthDecodeError) as error:
        yield Row(name, float("inf"), 0.0, str(error))


def unchecked(oracle: Oracle, done: set[str]) -> list[str]:
    """Returns the names of recorded outputs that are not among those done."""
    named = sorted(name for name in oracle.arrays if name not in done)
    return [name for name in named if _is_output(name)]


def _is_output(name: str) -> bool:
    group, *middle, last = name.split("/")
    if group == "train":
        return bool(middle) or last == "encoder_mask"
    if group in ("fast", "batch"):
        return last == "trajectory"
    return last == "image_token_pooling" or not last.startswith(_INPUTS)


def _prompt(oracle: Oracle, index: int) -> PromptRow:
    observation = oracle.observation(index)
    tag = oracle.host.tag(observation.norm_tag)
    return oracle.host.row(observation, "robot_action", observe.pictures(observation, tag, strict_cameras=False))


def _inputs(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, host, observation = f"case{index}/", oracle.host, oracle.observation(index)
    state, tag = np.asarray(observation.state), host.tag(observation.norm_tag)
    yield oracle.check(f"{prefix}normalized_state", normalize.normalize(state, tag.state, host.robots.mode), 0)
    row, patch = _prompt(oracle, index), host.processor.patch_size
    yield oracle.check(f"{prefix}in/input_ids", row.tokens, 0)
    yield oracle.check(f"{prefix}in/token_type_ids", np.isin(row.tokens, oracle.cfg.tokens.image_family), 0)
    pixels = parity_host.patches(row.crops, patch)
    yield oracle.check(f"{prefix}in/pixel_values", pixels, 0)
    # indices inside each picture, as the released processor has them
    pooling = np.where(row.pooling < 0, -1, row.pooling % pixels.shape[1])
    yield oracle.check(f"{prefix}in/image_token_pooling", pooling, 0)


def _stages(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, row = f"case{index}/", _prompt(oracle, index)
    inputs = observe.pad([row], oracle.cfg.tokens.pad, len(row.tokens))
    for name, value in jax.jit(prefill_stages, static_argnums=0)(oracle.cfg, oracle.params, inputs).items():
        yield oracle.check(prefix + name, value)
    if oracle.cfg.expert is None:
        return
    noise = oracle.arrays[f"{prefix}noise"][0]
    for steps, suffix in ((None, ""), (4, "_4steps")):
        out = oracle.policy.predict_actions([oracle.observation(index)], noise=[noise], num_steps=steps)[0]
        if not suffix:
            yield oracle.check(f"{prefix}trajectory", out.trajectory)
        yield oracle.check(f"{prefix}actions_continuous{suffix}", out.actions)


def prefill_stages(cfg: ModelConfig, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
    """Computes the stages of a prefill that archives record, under their recorded names."""
    prefix, x = molmoact2.prefill(cfg, params, inputs, read=1)
    kv = params_lib.stacked(prefix.kv)
    return {
        "vision_features": molmoact2.vision(cfg, params, jnp.asarray(inputs.crops), jnp.asarray(inputs.pooling)),
        "last_logits": llm.logits(cfg.llm, params["llm"], x)[:, 0],
        "k_last_layer": kv.k[-1].reshape(*kv.k.shape[1:3], -1),
        "v_first_layer": kv.v[0].reshape(*kv.v.shape[1:3], -1),
    }


def _discrete(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix = f"case{index}/"
    if f"{prefix}tokens_discrete" not in oracle.arrays:
        return
    out = oracle.policy.predict_actions([oracle.observation(index)], mode="discrete", strict=False)[0]
    yield oracle.check(f"{prefix}tokens_discrete", out.token_ids, 0)
    yield oracle.check(f"{prefix}actions_discrete", out.actions)


def _batch(oracle: Oracle) -> Iterator[Row]:
    if "batch/trajectory" not in oracle.arrays:
        return
    recorded, host = oracle.arrays["batch/in/input_ids"], oracle.host
    inputs = observe.pad([_prompt(oracle, 0), _prompt(oracle, 2)], oracle.cfg.tokens.pad, recorded.shape[1])
    yield oracle.check("batch/in/input_ids", np.where(inputs.valid, inputs.tokens, recorded), 0)
    widths = np.array([[host.channels(host.tag(oracle.cases[i]["tag"]))] for i in (0, 2)])
    channels = np.arange(oracle.cfg.action_dim) < widths
    run = jax.jit(_trajectory, static_argnums=0)
    yield oracle.check(
        "batch/trajectory", run(oracle.cfg, oracle.params, inputs, oracle.arrays["batch/noise"], channels)
    )


def _visible(oracle: Oracle) -> Iterator[Row]:
    """Compares what the expert may read of a prompt with its answer."""
    if "train/encoder_mask" in oracle.arrays:
        tokens = jnp.asarray(oracle.arrays["train/input_ids"])
        yield oracle.check("train/encoder_mask", masks.context(tokens, tokens >= 0, oracle.cfg), 0)


def _trajectory(cfg: ModelConfig, params: Params, inputs: Inputs, noise: jax.Array, channels: jax.Array) -> jax.Array:
    prefix, _ = molmoact2.prefill(cfg, params, inputs)
    shifts = molmoact2.modulation(cfg, params, cfg.flow.num_steps)
    return molmoact2.act(cfg, params, shifts, molmoact2.context(cfg, params, prefix), noise, channels=channels)
