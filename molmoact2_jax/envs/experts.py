"""Demonstrations by scripted experts: clean ones, and ones that leave the path so that the way back is seen too."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from molmoact2_jax.envs.base import Environment, Expert, Frame, checked


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """How often and how far demonstrations leave the expert's path.

    A disturbed episode executes the expert's action plus noise; its label stays what the expert would have done
    there, so that a policy sees how to recover from its own errors (Laskey et al. 2017, "DART").

    Attributes:
      share: fraction of the episodes that are disturbed.
      scales: standard deviations of the noise, in parts of half of an action channel's range; an episode draws one.
      moved_share: fraction of the episodes that start after a few random moves, which are not recorded.
      max_moves: at most so many of them.
      still: channels that get no noise, by a part of their name.
    """

    share: float = 0.5
    scales: tuple[float, ...] = (0.2, 0.4)
    moved_share: float = 0.25
    max_moves: int = 3
    still: str = "gripper"


CLEAN = Disturbance(share=0.0, moved_share=0.0)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One episode of T decisions. The last recorded decision is the one that succeeded.

    Attributes:
      task: name of the task.
      instruction: what was to be done, in words.
      seed: of the environment and of the disturbance.
      style: "clean" (the executed actions are the expert's) or "disturbed".
      moves: f32[M, C], random moves before the first recorded frame, mostly none.
      images: u8[T, H, W, 3] by camera.
      states: f32[T, D].
      actions: f32[T, C], what the expert decided: the label.
      executed: f32[T, C], what was carried out.
      success: whether the simulator says so.
      depth: u16[T, H, W], millimetres in front of the first camera, of a simulator that measures them.
    """

    task: str
    instruction: str
    seed: int
    style: str
    moves: np.ndarray
    images: Mapping[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    executed: np.ndarray
    success: bool
    depth: np.ndarray | None = None


def demonstrate(env: Environment, seed: int, disturbance: Disturbance, horizon: int | None = None) -> Demonstration:
    """Runs a scripted expert until it succeeds or the horizon ends.

    Args:
      env: one task.
      seed: decides the episode and everything that is drawn for it.
      disturbance: how it leaves the path.
      horizon: decisions at most; None takes the task's.
    """
    rng = np.random.default_rng([seed, zlib.crc32(env.spec.task.encode())])
    scale = rng.choice(disturbance.scales) if rng.random() < disturbance.share else 0.0
    count = rng.integers(1, disturbance.max_moves + 1) if rng.random() < disturbance.moved_share else 0
    sway = np.array([disturbance.still not in name for name in env.spec.action_names], np.float32)
    env.reset(seed)
    expert = env.expert()
    moves = np.zeros((count, len(sway)), np.float32)
    for i in range(count):
        moves[i] = _random_move(env, expert, rng, sway)
        env.step(moves[i])
    frames, labels, executed, success = _recorded(env, expert, horizon or env.spec.horizon, scale * sway, rng)
    return Demonstration(
        task=env.spec.task,
        instruction=env.spec.instruction,
        seed=seed,
        style="disturbed" if scale > 0 else "clean",
        moves=moves,
        images={camera: np.stack([frame.images[camera] for frame in frames]) for camera in env.spec.cameras},
        states=np.stack([frame.state for frame in frames]),
        actions=np.stack(labels),
        executed=np.stack(executed),
        success=success,
        depth=_millimetres(frames),
    )


def _millimetres(frames: Sequence[Frame]) -> np.ndarray | None:
    maps = [frame.depth for frame in frames if frame.depth is not None]
    return np.clip(np.round(1000 * np.stack(maps)), 0, 65535).astype(np.uint16) if maps else None


def _recorded(
    env: Environment, expert: Expert, horizon: int, scale: np.ndarray, rng: np.random.Generator
) -> tuple[list[Frame], list[np.ndarray], list[np.ndarray], bool]:
    """Returns frames, labels, executed actions, and whether the last of them succeeded."""
    frames, labels, executed = [], [], []
    for _ in range(horizon):
        frames.append(env.observe())
        labels.append(checked(env.spec, expert()))
        executed.append(_swayed(env, labels[-1], scale, rng))
        outcome = env.step(executed[-1])
        if outcome.success or outcome.ended:
            break
    return frames, labels, executed, outcome.success


def _random_move(env: Environment, expert: Expert, rng: np.random.Generator, sway: np.ndarray) -> np.ndarray:
    """Draws uniformly in the channels that may sway; the others do what the expert does."""
    return np.where(sway > 0, rng.uniform(*env.spec.bounds), expert()).astype(np.float32)


def _swayed(env: Environment, action: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = env.spec.bounds
    noise = rng.standard_normal(len(action)).astype(np.float32)
    return checked(env.spec, action + noise * scale * (high - low) / 2)
