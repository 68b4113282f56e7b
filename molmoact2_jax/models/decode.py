"""Greedy decoding, and the fixed-point passes that give Think's depth codes. Source: `inference.md` 2, `model.md` 8."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import llm, masks, molmoact2
from molmoact2_jax.models.molmoact2 import Inputs, Prefix
from molmoact2_jax.nn.params import Params


class Generated(NamedTuple):
    """Tokens i32[B, limit] (padding id behind the end), number of real ones i32[B], whether the end came bool[B]."""

    tokens: jax.Array
    num_tokens: jax.Array
    ended: jax.Array


class Depth(NamedTuple):
    """Codes i32[B, C]; passes over depth positions i32[]; ended bool[B]: the model closes the span after them."""

    codes: jax.Array
    passes: jax.Array
    ended: jax.Array


def greedy(
    cfg: ModelConfig, tree: Params, prefix: Prefix, start: int, *, stop: int, limit: int
) -> tuple[Prefix, Generated]:
    """Decodes the most likely token until `stop`, which is also fed, or until `limit` tokens.

    Args:
      cfg: the model.
      tree: parameters.
      prefix: with `last` at the newest token and free slots from `start` on, at least `limit` of them.
      start: first free slot, the same in all rows.
      stop: id that ends a row.
      limit: most tokens to generate.

    Returns:
      The prefix with the generated tokens in it, and the tokens.
    """
    batch = prefix.tokens.shape[0]
    empty = Generated(
        jnp.full((batch, limit), cfg.tokens.pad, jnp.int32), jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)
    )

    def going(state: tuple) -> jax.Array:
        i, _, out = state
        return (i < limit) & ~out.ended.all()

    def step(state: tuple) -> tuple:
        i, prefix, out = state
        best = llm.logits(cfg.llm, tree["llm"], prefix.last[:, None])[:, 0].argmax(axis=-1).astype(jnp.int32)
        alive = ~out.ended
        token = jnp.where(alive, best, cfg.tokens.pad)
        out = Generated(out.tokens.at[:, i].set(token), out.num_tokens + alive, out.ended | (token == stop))
        return i + 1, feed(cfg, tree, prefix, token[:, None], alive[:, None], start=start + i), out

    _, prefix, out = jax.lax.while_loop(going, step, (jnp.zeros((), jnp.int32), prefix, empty))
    return prefix, out


def feed(
    cfg: ModelConfig, tree: Params, prefix: Prefix, tokens: jax.Array, valid: jax.Array, *, start: jax.Array | int
) -> Prefix:
    """Runs tokens i32[B, T] in slots `start` onwards, causally behind the prefix; rows keep `last` where not valid."""
    new, _ = _pass(cfg, tree, prefix, tokens, valid, start=start)
    return new


def _pass(
    cfg: ModelConfig, tree: Params, prefix: Prefix, tokens: jax.Array, valid: jax.Array, *, start: jax.Array | int
) -> tuple[Prefix, jax.Array]:
    length, slots = tokens.shape[1], prefix.tokens.shape[1]
    write = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, axis=1)  # noqa: E731
    ids, filled = write(prefix.tokens, tokens), write(prefix.valid, valid)
    positions = jax.lax.dynamic_slice_in_dim(masks.positions(filled), start, length, axis=1)
    causal = jnp.arange(slots)[None] <= start + jnp.arange(length)[:, None]
    where = llm.Where(llm.rotary(cfg.llm, positions), causal[None] & filled[:, None], start)
    x, kv = llm.forward(cfg.llm, tree["llm"], llm.embed(cfg.llm, tree["llm"], tokens), where, cache=prefix.kv)
    last = jnp.where(valid[:, -1:], x[:, -1], prefix.last)
    return Prefix(ids, filled, kv, last), x


def depth_codes(
    cfg: ModelConfig, tree: Params, inputs: Inputs, draft: jax.Array, changed: jax.Array, *, widths: tuple[int, ...]
) -> tuple[Prefix, Depth]:
    """Predicts the changed cells of the depth grid exactly as one-by-one decoding would, in a few passes.

    All depth tokens stand behind the prompt, with the draft in the unknown cells. Each pass predicts changed cells from
    the codes before them; a cell is final once all before it are. The pass that confirms leaves the right keys and
    values, since it ran on the final codes.

    Args:
      cfg: the model.
      tree: parameters.
      inputs: prompts, which end with the depth trigger.
      draft: i32[B, C], the previous buffer: kept where nothing changed, the first guess elsewhere.
      changed: bool[B, C], cells to predict.
      widths: how many positions a pass behind the prefill may have, ascending, the last C + 2. Each pass takes the
        least that reaches the next cell to predict. Narrow ones suit a CPU, where work is paid per token; one suits an
        accelerator, where a pass is paid by its weights.

    Returns:
      The prefix with the span in it, `last` at its end, and the codes. For one row, passes are at most 1 + the number
      of changed cells; rows of a batch share the passes.
    """
    prompt, span = inputs.tokens.shape[1], draft.shape[1] + 2
    assert widths[-1] == span, widths
    assert min(widths) >= 2, widths
    prefix, x = molmoact2.prefill(cfg, tree, _with_span(cfg, inputs, draft), read=span)
    known = _update(cfg, tree, x, (draft, jnp.zeros(draft.shape[0], jnp.int32)), changed, start=0)
    branches = [lambda s, width=width: _refine(cfg, tree, s, changed, prompt=prompt, width=width) for width in widths]

    def going(state: tuple) -> jax.Array:
        return (state[1] < span).any()

    def step(state: tuple) -> tuple:
        *rest, passes = state
        least = jnp.searchsorted(jnp.asarray(widths), _reach(changed, state[1]))
        return *jax.lax.switch(least, branches, tuple(rest)), passes + 1

    state = (*known, prefix, x[:, -2:], jnp.ones((), jnp.int32))
    codes, _, prefix, tail, passes = jax.lax.while_loop(going, step, state)
    best = llm.logits(cfg.llm, tree["llm"], tail[:, :1])[:, 0].argmax(axis=-1)
    return prefix._replace(last=tail[:, 1]), Depth(codes, passes, best == cfg.tokens.depth.end)


def span_tokens(cfg: ModelConfig, codes: jax.Array) -> jax.Array:
    """Returns i32[B, C + 2]: depth start, the codes, depth end."""
    edge = jnp.ones((codes.shape[0], 1), jnp.int32)
    ids = cfg.tokens.depth
    return jnp.concatenate([edge * ids.start, codes + ids.first, edge * ids.end], axis=1)


def _with_span(cfg: ModelConfig, inputs: Inputs, codes: jax.Array) -> Inputs:
    span = span_tokens(cfg, codes)
    return inputs._replace(
        tokens=jnp.concatenate([inputs.tokens, span], axis=1),
        valid=jnp.concatenate([inputs.valid, jnp.ones(span.shape, bool)], axis=1),
    )


def _reach(changed: jax.Array, sure: jax.Array) -> jax.Array:
    """How many positions there are from the first that is not final in all rows to the next cell to predict."""
    cell, span = jnp.arange(changed.shape[1]), changed.shape[1] + 2
    waiting = (changed & (cell >= sure[:, None])).any(axis=0)
    return jnp.where(waiting.any(), waiting.argmax() + 1, span) - sure.min()


def _refine(cfg: ModelConfig, tree: Params, state: tuple, changed: jax.Array, *, prompt: int, width: int) -> tuple:
    """One pass over `width` positions of the span, from the first whose keys and values are not final."""
    codes, sure, prefix, tail = state
    start = jnp.minimum(sure.min(), codes.shape[1] + 2 - width)
    tokens = jax.lax.dynamic_slice_in_dim(span_tokens(cfg, codes), start, width, axis=1)
    prefix, x = _pass(cfg, tree, prefix, tokens, jnp.ones(tokens.shape, bool), start=prompt + start)
    codes, sure = _update(cfg, tree, x, (codes, sure), changed, start=start)
    tail = jnp.where(start + width == codes.shape[1] + 2, x[:, -2:], tail)  # the last code and the end of the span
    return codes, sure, prefix, tail


def _update(
    cfg: ModelConfig, tree: Params, x: jax.Array, known: tuple, changed: jax.Array, *, start: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Puts predictions into changed cells; returns the codes and how many leading positions of each row are final.

    Position p of the span predicts cell p (position 0 is its start), and cells before `sure` do not move any more. Of
    the cells that move now, the first is final, for all before it are; what follows it is not.
    """
    codes, sure = known
    (rows, cells), width, ids = codes.shape, x.shape[1], cfg.tokens.depth
    best = llm.depth_logits(cfg.llm, tree["llm"], x, ids.first, ids.num_codes).argmax(axis=-1)
    guess = jnp.zeros((rows, cells + 2), jnp.int32)
    guess = jax.lax.dynamic_update_slice_in_dim(guess, best.astype(jnp.int32), start, axis=1)[:, :cells]
    cell = jnp.arange(cells)
    free = changed & (cell >= jnp.maximum(start, sure[:, None])) & (cell < start + width)
    new = jnp.where(free, guess, codes)
    moved = new != codes
    return new, jnp.maximum(sure, jnp.where(moved.any(axis=1), moved.argmax(axis=1) + 1, start + width))
