"""AdamW in four groups of parameters, each with its own rate and clip; what is trained; steps that are skipped.

Source: training.md 1.2 and 1.4. Masters and moments are float32. Frozen weights have neither gradients nor moments: the
tree is split into what is trained and the rest, with None in the places of the other part.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from molmoact2_jax.nn import paths

Tree = Any

GROUPS = {
    "vit": r"^vit/",
    "connector": r"^(connector/|llm/embedding/extra$)",
    "llm": r"^llm/(?!embedding/extra$)",
    "action_expert": r"^(expert|gate)/",
}
# Paths outside weight decay in the embodied-reasoning stages: embeddings, norms of blocks and of the head (training.md
# 1.2). The norms of queries and keys are not among them.
DECAY_EXEMPT = r"embedding/|(attn|mlp)_norm|^llm/head/norm$|^vit/patches/"


@dataclasses.dataclass(frozen=True)
class Embedding:
    """How far the tables around the decoder are trained (training.md 1.4).

    Attributes:
      frozen: paths that are not trained, or None.
      added_rows_only: whether the vocabulary table moves in its added rows alone.
    """

    frozen: str | None
    added_rows_only: bool = False


EMBEDDING = {
    "lm_head": Embedding(r"^llm/embedding/table$"),
    "added_tokens": Embedding(r"^llm/embedding/extra$", added_rows_only=True),
    "none": Embedding(r"^llm/(embedding|head)/"),
    "ln_f": Embedding(r"^llm/(embedding/|head/kernel)"),
    "wte": Embedding(r"^llm/head/"),
    "all": Embedding(None),
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Numbers of the released recipe.

    Attributes:
      peak_rates: learning rate of each group after warm-up.
      warmup_steps: steps of the linear rise from 0; then a cosine falls to `final_fraction` of the peak at the end.
      clip_norm: each group's gradient is scaled down to this norm.
      weight_decay: decoupled, for all paths but those that match `decay_exempt`.
      ema: decay of the moving average of the weights, or None for no average.
    """

    peak_rates: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: dict(vit=5e-6, connector=5e-6, llm=1e-5, action_expert=5e-5)
    )
    warmup_steps: int = 200
    final_fraction: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    weight_decay: float = 0.0
    decay_exempt: str = DECAY_EXEMPT
    ema: float | None = None


class State(NamedTuple):
    """Optimizer state: i32 steps of the schedule, i32 steps that were skipped, Adam's moments, averaged weights."""

    step: jax.Array
    skipped: jax.Array
    adam: optax.ScaleByAdamState
    ema: Tree | None


def check(cfg: OptimConfig, num_steps: int) -> None:
    """Refuses settings that no run can follow.

    Raises:
      ValueError: rates for other groups than `GROUPS`, or a warm-up that the run does not outlast.
    """
    if set(cfg.peak_rates) != set(GROUPS):
        raise ValueError(
            f"optimizer.peak_rates: groups {sorted(cfg.peak_rates)}, expected {sorted(GROUPS)}. Give one rate for each."
        )
    if not 0 <= cfg.warmup_steps < num_steps:
        raise ValueError(
            f"optimizer.warmup_steps: {cfg.warmup_steps} with {num_steps} steps, expected less. Shorten the warm-up."
        )


def trainable(params: Tree, frozen: Sequence[str] = (), embedding: str = "all") -> Tree:
    """Marks the weights that are trained.

    Args:
      params: tree of weights or of their shapes.
      frozen: regular expressions over paths; each must match at least one.
      embedding: a key of `EMBEDDING`.

    Raises:
      ValueError: an expression matches nothing, everything is frozen, or the key is unknown.
    """
    if embedding not in EMBEDDING:
        raise ValueError(f"embedding: {embedding!r}, expected one of {sorted(EMBEDDING)}. Choose one of them.")
    table = EMBEDDING[embedding].frozen
    patterns = [*frozen, *([table] if table else [])]
    marks = [paths.select(params, pattern, "frozen") for pattern in patterns]
    trained = jax.tree.map(lambda _, *hits: not any(hits), params, *marks)
    if not any(jax.tree.leaves(trained)):
        raise ValueError(f"frozen: {patterns} freezes every parameter, expected some to train. Narrow the expressions.")
    return trained


def split(params: Tree, trained: Tree) -> tuple[Tree, Tree]:
    """Splits a tree into the trained leaves and the rest, each with None in the other's places."""
    train = jax.tree.map(lambda x, t: x if t else None, params, trained)
    return train, jax.tree.map(lambda x, t: None if t else x, params, trained)


def join(first: Tree, second: Tree) -> Tree:
    """Undoes `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)


def group_names(params: Tree) -> Tree:
    """Names the group of every leaf.

    Raises:
      ValueError: a path is in no group or in two.
    """

    def one(path: Any, _: Any) -> str:
        name = paths.name(path)
        found = [group for group, pattern in GROUPS.items() if re.search(pattern, name)]
        if len(found) != 1:
            raise ValueError(
                f"optim: {name} is in the groups {found}, expected one of {sorted(GROUPS)}. Correct GROUPS."
            )
        return found[0]

    return jax.tree_util.tree_map_with_path(one, params)


def keep_rows(grads: Tree, rows: tuple[int, int]) -> Tree:
    """Zeroes the gradient of the vocabulary table outside the rows [first, last) of the added tokens."""

    def one(path: Any, g: jax.Array) -> jax.Array:
        if paths.name(path) != "llm/embedding/table":
            return g
        ids = jnp.arange(g.shape[0])[:, None]
        return jnp.where((ids >= rows[0]) & (ids < rows[1]), g, 0)

    return jax.tree_util.tree_map_with_path(one, grads)


def group_norms(grads: Tree) -> dict[str, jax.Array]:
    """Returns the L2 norm f32[] of every group that has gradients."""
    squares: dict[str, list[jax.Array]] = {}
    for group, g in zip(jax.tree.leaves(group_names(grads)), jax.tree.leaves(grads), strict=True):
        squares.setdefault(group, []).append(jnp.sum(jnp.square(g.astype(jnp.float32))))
    return {group: jnp.sqrt(sum(terms)) for group, terms in squares.items()}


def clip(grads: Tree, norms: Mapping[str, jax.Array], limit: float) -> Tree:
    """Scales each group down to the norm `limit`, as the released trainer does: by limit / (norm + 1e-6), at most 1."""
    factors = {group: jnp.minimum(1.0, limit / (norm + 1e-6)) for group, norm in norms.items()}
    return jax.tree.map(lambda g, group: g.astype(jnp.float32) * factors[group], grads, group_names(grads))


def schedule(cfg: OptimConfig, num_steps: int, step: jax.Array | int) -> jax.Array:
    """Fraction of the peak rate at a step, f32[]; the first update has step 1. It stays at the end value afterwards."""
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, cfg.warmup_steps, num_steps, cfg.final_fraction)(step)


def init(cfg: OptimConfig, train: Tree) -> State:
    """Returns the state before the first step, for the trained part of the weights."""
    ema = None if cfg.ema is None else jax.tree.map(lambda p: p.astype(jnp.float32), train)
    return State(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), _adam(cfg).init(train), ema)


def _adam(cfg: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, mu_dtype=jnp.float32)


def update(
    cfg: OptimConfig, num_steps: int, grads: Tree, state: State, train: Tree
) -> tuple[Tree, State, dict[str, jax.Array]]:
    """Takes one step of AdamW.

    Args:
      cfg: numbers of the recipe.
      num_steps: length of the schedule.
      grads: gradients of the trained part, complete over all rows and processes.
      state: of the step before.
      train: f32 masters of the trained part.

    Returns:
      Weights, state and scalars to log. Where the norm of any group is not finite, weights, moments and average stay as
      they are, the schedule advances, and `state.skipped` counts it.
    """
    norms = group_norms(grads)
    finite = jnp.isfinite(jnp.stack(list(norms.values()))).all()
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))

    fraction = schedule(cfg, num_steps, state.step + 1)
    direction, adam = _adam(cfg).update(clip(grads, norms, cfg.clip_norm), state.adam)
    moved = keep(_move(cfg, fraction, direction, train), train)
    ema = None if cfg.ema is None else keep(optax.incremental_update(moved, state.ema, 1 - cfg.ema), state.ema)
    state = State(state.step + 1, state.skipped + jnp.where(finite, 0, 1), keep(adam, state.adam), ema)
    metrics = {f"grad_norm/{group}": norm for group, norm in norms.items()}
    metrics |= {f"rate/{group}": cfg.peak_rates[group] * fraction for group in norms}
    return moved, state, metrics | {"skipped_steps": state.skipped}


def _move(cfg: OptimConfig, fraction: jax.Array, direction: Tree, train: Tree) -> Tree:
    """Weights after a step of the scheduled length along `direction`, and the decay."""

    def one(path: Any, p: jax.Array, d: jax.Array, group: str) -> jax.Array:
        exempt = re.search(cfg.decay_exempt, paths.name(path))
        step = d if cfg.weight_decay == 0 or exempt else d + cfg.weight_decay * p
        return p - cfg.peak_rates[group] * fraction * step

    return jax.tree_util.tree_map_with_path(one, train, direction, group_names(train))
