"""Flow from noise (t = 0) to data (t = 1): the path, training objectives, the averages of their errors, solvers.

Everything here is a pure function of arrays. An objective sees one chunk and one draw; masks, the K draws of a chunk
and the mean over chunks are applied around it, so a new objective cannot forget them. The convention, which some other
libraries mirror (t -> 1 - t, opposite sign of the velocity):

    x_t = (1 - t) noise + t chunk,    velocity = dx_t / dt = chunk - noise.       (paper eq. 1)
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.config import FlowConfig

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # (x f32[A, N], t f32[]) -> f32[A, N]
Objective = Callable[[jax.Array, jax.Array, Velocity, FlowConfig], tuple[jax.Array, dict[str, jax.Array]]]
Average = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
IndexedVelocity = Callable[[jax.Array, jax.Array], jax.Array]  # (x, index into Solver.times) -> dx/dt
T = TypeVar("T")

OBJECTIVES: dict[str, Objective] = {}
AVERAGES: dict[str, Average] = {}
SOLVERS: dict[str, "Solver"] = {}


def register(registry: dict[str, T], name: str) -> Callable[[T], T]:
    """Returns a decorator that enters an object into `registry` under `name`, which must be new."""

    def add(entry: T) -> T:
        if name in registry:
            raise ValueError(f"flow.register: {name!r} is taken, expected a new name. Choose another.")
        registry[name] = entry
        return entry

    return add


def find(registry: dict[str, T], name: str) -> T:
    """Looks up an entry by its name, or by "package.module:attribute" for one that lives outside this library."""
    if name in registry:
        return registry[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"flow: {name!r}, expected one of {sorted(registry)}. For your own, give 'package.module:attribute'."
        )
    return getattr(importlib.import_module(module), attribute)


def sample_time(key: jax.Array, cfg: FlowConfig) -> jax.Array:
    """Draws a training time, f32[] in [offset, min(cutoff, offset + scale)].

    The density is Beta(alpha, beta), stretched over that range; the released Beta(1, 1.5) favours noise (mean 0.4006).
    Source: training.md 2.2.
    """
    span = min(cfg.cutoff, cfg.time_offset + cfg.time_scale) - cfg.time_offset
    return cfg.time_offset + span * jax.random.beta(key, cfg.beta_alpha, cfg.beta_beta, dtype=jnp.float32)


def interpolate(noise: jax.Array, chunk: jax.Array, t: jax.Array) -> jax.Array:
    """The point at time t on the straight line from `noise` (t = 0) to `chunk` (t = 1)."""
    return (1 - t) * noise + t * chunk


def target(noise: jax.Array, chunk: jax.Array) -> jax.Array:
    """The velocity of that line."""
    return chunk - noise


def squared_error(noise: jax.Array, chunk: jax.Array, t: jax.Array, velocity: Velocity) -> jax.Array:
    """Squared error of the velocity at one point of one line, f32[A, N] (paper eq. 2 before its mask)."""
    return jnp.square(velocity(interpolate(noise, chunk, t), t) - target(noise, chunk))


@register(OBJECTIVES, "flow_matching")
def flow_matching(
    key: jax.Array, chunk: jax.Array, velocity: Velocity, cfg: FlowConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The released objective: regression of the velocity at a random time (paper eq. 2).

    Args:
      key: random key of this draw.
      chunk: f32[A, N], normalised actions, zero where masked.
      velocity: the network with its context, `(x f32[A, N], t f32[]) -> f32[A, N]`; it masks its input and its result.
      cfg: density of the times.

    Returns:
      Errors f32[A, N], one per step and channel, and scalars to log.
    """
    time_key, noise_key = jax.random.split(key)
    t = sample_time(time_key, cfg)
    return squared_error(jax.random.normal(noise_key, chunk.shape), chunk, t, velocity), {"time": t}


@register(OBJECTIVES, "consistency")
def consistency(
    key: jax.Array, chunk: jax.Array, velocity: Velocity, cfg: FlowConfig, *, gap: float = 0.1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Consistency flow matching: two points of one line must lead to the same end.

    From x_t the straight continuation ends at f_t = x_t + (1 - t) v(x_t, t). The error is (f_t - sg f_s)^2 / gap^2 with
    s = min(t + gap, 1), and f_1 = x_1 = chunk anchors the end. Fields that satisfy it are straight, so few solver steps
    are enough. Source: Yang et al. 2024, "Consistency Flow Matching", eq. 6 with one segment and alpha = 0, scaled so
    that a constant field has the error of `flow_matching`.
    """
    time_key, noise_key = jax.random.split(key)
    noise, t = jax.random.normal(noise_key, chunk.shape), sample_time(time_key, cfg)

    def end(s: jax.Array) -> jax.Array:
        x = interpolate(noise, chunk, s)
        return x + (1 - s) * velocity(x, s)

    later = jnp.minimum(t + gap, 1.0)
    return jnp.square((end(t) - jax.lax.stop_gradient(end(later))) / gap), {"time": t}


def chunk_errors(
    objective: Objective,
    key: jax.Array,
    chunk: jax.Array,
    velocity: Velocity,
    cfg: FlowConfig,
    *,
    valid: jax.Array,
    channels: jax.Array,
    num_samples: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Evaluates an objective K times on one chunk, with everything that is padding zeroed before and after the network.

    Args:
      objective: an entry of `OBJECTIVES`.
      key: key of the chunk; draw k uses `fold_in(key, k)`.
      chunk: f32[A, N], anything where masked.
      velocity: the network, `(x f32[A, N], t f32[]) -> f32[A, N]`.
      cfg: density of the times.
      valid: bool[A], steps inside the robot's horizon.
      channels: bool[N], channels that the robot has.
      num_samples: K.

    Returns:
      Errors f32[K, A, N] and metrics f32[K] by name.
    """
    mask = valid[:, None] & channels

    def masked(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.where(mask, velocity(jnp.where(mask, x, 0.0), t), 0.0)

    clean = jnp.where(mask, chunk, 0.0)
    keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(num_samples))
    return jax.vmap(lambda k: objective(k, clean, masked, cfg))(keys)


def _step_means(errors: jax.Array, valid: jax.Array, channels: jax.Array) -> jax.Array:
    """Mean over the valid channels of each valid step, 0 on padded steps; f32[..., K, A]."""
    kept = jnp.where(valid[..., None, :, None] & channels[..., None, None, :], errors, 0.0)
    return kept.sum(axis=-1) / jnp.maximum(1, channels.sum(axis=-1))[..., None, None]


@register(AVERAGES, "released")
def released_average(errors: jax.Array, valid: jax.Array, channels: jax.Array) -> jax.Array:
    """Loss of each chunk as the released trainer counts it: padded steps add 0 but stay in the denominator.

    A robot whose horizon is half of the batch's therefore weighs half. Source: training.md 2.2.

    Args:
      errors: f32[..., K, A, N].
      valid: bool[..., A], steps inside the robot's horizon.
      channels: bool[..., N].

    Returns:
      f32[...], 0 for a chunk without valid steps. The batch's loss is the sum over its number of valid chunks.
    """
    return _step_means(errors, valid, channels).mean(axis=(-2, -1))


@register(AVERAGES, "paper")
def paper_average(errors: jax.Array, valid: jax.Array, channels: jax.Array) -> jax.Array:
    """Loss of each chunk as the paper states it: the mean over its own valid steps (section 4.2.2).

    Arguments and result as for `released_average`.
    """
    steps = jnp.maximum(1, valid.sum(axis=-1))
    return _step_means(errors, valid, channels).mean(axis=-2).sum(axis=-1) / steps


@dataclasses.dataclass(frozen=True)
class Solver:
    """A fixed-step integrator that says beforehand at which times it evaluates the velocity.

    The network's modulation depends on the time alone, so it is computed once for all of `times` and then indexed.

    Attributes:
      times: num_steps -> f32[E], evaluation times in the order of use, E = num_steps * (evaluations per step).
      step: `(velocity, x, i, num_steps) -> x` after step i; velocity takes x and an index into `times`.
    """

    times: Callable[[int], np.ndarray]
    step: Callable[[IndexedVelocity, jax.Array, jax.Array, int], jax.Array]


def _stages(num_steps: int, *offsets: float) -> np.ndarray:
    """Times (i + offset) / num_steps, f32[num_steps * len(offsets)], step after step."""
    grid = np.arange(num_steps)[:, None] + np.asarray(offsets)
    return (grid / num_steps).astype(np.float32).reshape(-1)


def _euler_step(velocity: IndexedVelocity, x: jax.Array, i: jax.Array, num_steps: int) -> jax.Array:
    return x + (1 / num_steps) * velocity(x, i)


def _midpoint_step(velocity: IndexedVelocity, x: jax.Array, i: jax.Array, num_steps: int) -> jax.Array:
    half = x + (0.5 / num_steps) * velocity(x, 2 * i)
    return x + (1 / num_steps) * velocity(half, 2 * i + 1)


def _heun_step(velocity: IndexedVelocity, x: jax.Array, i: jax.Array, num_steps: int) -> jax.Array:
    first = velocity(x, 2 * i)
    second = velocity(x + (1 / num_steps) * first, 2 * i + 1)
    return x + (0.5 / num_steps) * (first + second)


register(SOLVERS, "euler")(Solver(lambda n: _stages(n, 0.0), _euler_step))
register(SOLVERS, "midpoint")(Solver(lambda n: _stages(n, 0.0, 0.5), _midpoint_step))
register(SOLVERS, "heun")(Solver(lambda n: _stages(n, 0.0, 1.0), _heun_step))


def integrate(solver: Solver, velocity: IndexedVelocity, noise: jax.Array, num_steps: int) -> jax.Array:
    """Carries noise at t = 0 to data at t = 1.

    Args:
      solver: an entry of `SOLVERS`.
      velocity: `(x f32[...], j i32[]) -> f32[...]`, the velocity at time `solver.times(num_steps)[j]`.
      noise: f32[...], any shape.
      num_steps: number of equal steps, at least 1; a compile-time constant.

    Returns:
      The end point, of the shape and dtype of `noise`. Differentiable.
    """
    if num_steps < 1:
        raise ValueError(f"flow.integrate: num_steps is {num_steps}, expected at least 1. Ask for one step or more.")

    def body(i: Any, x: jax.Array) -> jax.Array:
        return solver.step(velocity, x, i, num_steps).astype(noise.dtype)

    return jax.lax.fori_loop(0, num_steps, body, noise)
