"""Which tokens attend to which, and which of them the expert and the depth gate see. All masks are bool."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.config import ModelConfig, TokenIds


def image_family(tokens: jax.Array, ids: TokenIds) -> jax.Array:
    """Returns bool[B, S], true for image-structure tokens, which may attend to each other in both directions."""
    return jnp.isin(tokens, np.asarray(ids.image_family))


def prompt(tokens: jax.Array, valid: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Returns bool[B, S, S]: causal over valid tokens, plus image tokens among themselves where the model says so."""
    size = tokens.shape[1]
    allowed = jnp.tril(jnp.ones((size, size), bool))[None]
    if cfg.bidirectional_images:
        family = image_family(tokens, cfg.tokens)
        allowed = allowed | (family[:, :, None] & family[:, None, :])
    return allowed & valid[:, None, :]


def packed(segments: jax.Array, family: jax.Array | None = None) -> jax.Array:
    """Attention of packed rows: token i sees j <= i iff segments[i] <= segments[j] and j is not padding.

    Args:
      segments: i32[B, T], 100 000 * example + conversation, -1 on padding.
      family: bool[B, T], image tokens that see each other both ways inside an example; None for causal images.

    Returns:
      bool[B, T, T].

    Source: `model.md` 4.1, packed training.
    """
    size = segments.shape[1]
    allowed = jnp.tril(jnp.ones((size, size), bool)) & (segments[:, :, None] <= segments[:, None, :])
    if family is not None:
        example = segments // 100_000
        allowed |= family[:, :, None] & family[:, None, :] & (example[:, :, None] == example[:, None, :])
    return allowed & (segments >= 0)[:, None, :]


def positions(valid: jax.Array) -> jax.Array:
    """Returns i32[B, S], logical positions: padding does not count."""
    return jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)


def context(tokens: jax.Array, valid: jax.Array, cfg: ModelConfig, segments: jax.Array | None = None) -> jax.Array:
    """Returns bool[B, S], the tokens the expert may read.

    With `action_mode` "both" the end-of-sequence id (also the first token) and every span from action start to action
    end are hidden; an unclosed span hides the rest of its example. Source: `model.md` 6.2.
    """
    ids = cfg.tokens
    if cfg.action_mode != "both":
        return valid
    visible = valid & (tokens != ids.eos)
    if ids.action_start is None or ids.action_end is None:
        return visible
    return visible & ~spans(tokens == ids.action_start, tokens == ids.action_end, segments)


def spans(start: jax.Array, end: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Marks tokens from each start through the next end, or through the end of its example if none comes.

    Args:
      start: bool[B, S].
      end: bool[B, S].
      segments: i32[B, S], 100 000 * example + conversation; a new example closes whatever was open. None: one example.

    Returns:
      bool[B, S].
    """

    def step(opened: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        starts, ends, fresh = token
        inside = (opened & ~fresh) | starts
        return inside & ~ends, inside

    example = jnp.zeros(start.shape, jnp.int32) if segments is None else segments // 100_000
    fresh = jnp.concatenate([jnp.zeros_like(start[:, :1]), example[:, 1:] != example[:, :-1]], axis=1)
    _, inside = jax.lax.scan(step, jnp.zeros(start.shape[0], bool), (start.T, end.T, fresh.T))
    return inside.T


def depth_span(tokens: jax.Array, visible: jax.Array, ids: TokenIds) -> jax.Array:
    """Returns bool[B, S], the visible depth tokens: trigger, start, codes and end. Source: `model.md` 5."""
    if ids.depth_first is None:
        return jnp.zeros(tokens.shape, bool)
    depth = ids.depth
    codes = (tokens >= depth.first) & (tokens < depth.first + depth.num_codes)
    marks = jnp.isin(tokens, np.asarray([depth.output, depth.start, depth.end]))
    return (codes | marks) & visible
