"""What a policy achieved in a simulator: checks before, a result file with its protocol after."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from molmoact2_jax.batch import Observation
from molmoact2_jax.data.norm_stats import Tag
from molmoact2_jax.envs.base import Spec
from molmoact2_jax.eval import intervals, rollout, trajectory
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import params as plain
from molmoact2_jax.serve.policy import Policy

PACKAGES = ("molmoact2-jax", "jax", "numpy")


def planner(policy: Policy, executed: int, **options: Any) -> rollout.Planner:
    """Returns a planner that asks a policy for a whole batch at once.

    Args:
      policy: the checkpoint.
      executed: actions of each plan that are wanted.
      **options: of `Policy.predict_actions`, such as num_steps or mode.
    """

    def plan(observations: Sequence[Observation], seeds: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        tag = policy.host.tag(observations[0].norm_tag)
        shape = (policy.host.horizon(tag), policy.cfg.action_dim)
        noise = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
        outputs = policy.predict_actions(observations, noise=noise, n_action_steps=executed, **options)
        return [output.actions for output in outputs]

    return plan


def untrained(policy: Policy, dtype: str, seed: int = 0) -> Policy:
    """Returns the same model with the weights that training would start from, in the dtype to compute in."""

    def make(key: jax.Array) -> plain.Params:
        weights, _ = plain.unbox(molmoact2.init(policy.cfg, key))
        return jax.tree.map(lambda w: w.astype(dtype), weights)

    return Policy(policy.host, jax.jit(make)(jax.random.key(seed)))


def fit(tag: Tag, name: str, spec: Spec, horizon: int) -> tuple[str, ...]:
    """Checks that a checkpoint's robot is the environment's, and returns its cameras in the order of the prompt.

    Args:
      tag: the robot as the checkpoint knows it.
      name: of the tag.
      spec: of the environment.
      horizon: actions that are wanted of each plan.

    Raises:
      ValueError: another number of action or state channels, other names of theirs, a camera that the environment
        lacks, or more actions than a chunk has.
    """
    for kind, stats, names in (("action", tag.action, spec.action_names), ("state", tag.state, spec.state_names)):
        if stats is None:
            continue
        given = stats.names or tuple(f"{kind}_{i}" for i in range(stats.width))
        if stats.width != len(names) or (stats.names and tuple(stats.names) != tuple(names)):
            raise ValueError(
                f"norm_tag {name!r}: {stats.width} {kind} channels ({', '.join(given)}), expected {len(names)} "
                f"({', '.join(names)}) of {spec.env}. Choose the tag of this robot, or another checkpoint."
            )
    if tag.horizon is not None and horizon > tag.horizon:
        raise ValueError(f"executed: {horizon} actions of each plan, expected at most {tag.horizon} of {name!r}.")
    cameras = tuple(key.rsplit(".", 1)[-1] for key in tag.cameras) or spec.cameras
    if missing := [camera for camera in cameras if camera not in spec.cameras]:
        raise ValueError(
            f"norm_tag {name!r}: cameras {', '.join(cameras)}, but {spec.env} has only {', '.join(spec.cameras)}; "
            f"{', '.join(missing)} cannot be shown. Choose the tag of this robot."
        )
    return cameras


def result(protocol: rollout.Protocol, run: rollout.Run, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result file: success with 95% intervals, every episode, and all that is needed to repeat it.

    Args:
      protocol: what was asked.
      run: what happened.
      policy: facts about the checkpoint.
    """
    spec = next(iter(run.specs.values()))
    same = {k: v for k, v in dataclasses.asdict(spec).items() if k not in ("task", "instruction", "horizon")}
    return dict(
        kind="rollout",
        policy=dict(policy),
        protocol=dataclasses.asdict(protocol) | {"horizon": protocol.horizon or spec.horizon},
        environment=same,
        machine=machine(),
        success=share(run.episodes),
        tasks={task: share([e for e in run.episodes if e.task == task]) for task in protocol.tasks},
        motion=_motion(run, spec),
        episodes=[episode.facts() for episode in run.episodes],
        seconds={phase: round(value, 2) for phase, value in run.seconds.items()},
        plans=run.num_plans,
    )


def _motion(run: rollout.Run, spec: Spec) -> dict[str, Any]:
    """Returns means over episodes of how the robot was moved (`trajectory`)."""
    facts = [episode.facts() for episode in run.episodes]
    seams = [each["seam_ratio"] for each in facts if each["seam_ratio"] is not None]
    saturated = [trajectory.saturation(np.array(episode.actions), *spec.bounds) for episode in run.episodes]
    return dict(
        roughness=float(np.mean([each["roughness"] for each in facts])),
        seam_ratio=float(np.mean(seams)) if seams else None,
        saturation={name: float(v) for name, v in zip(spec.action_names, np.mean(saturated, axis=0))},
    )


def share(episodes: Sequence[rollout.Episode]) -> dict[str, Any]:
    """Returns the share of successes with its interval, and how long the successful ones took."""
    lengths = [len(episode.actions) for episode in episodes if episode.success]
    low, high = intervals.wilson(len(lengths), len(episodes))
    return dict(
        successes=len(lengths),
        episodes=len(episodes),
        rate=len(lengths) / len(episodes),
        low=low,
        high=high,
        mean_decisions=float(np.mean(lengths)) if lengths else None,
    )


def machine() -> dict[str, Any]:
    """Returns what a number depends on besides the protocol."""
    devices = jax.devices()
    return dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        platform=platform.platform(),
        cpus=os.cpu_count(),
        devices=f"{len(devices)} x {devices[0].device_kind}",
        python=platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    )


def save_films(run: rollout.Run, directory: pathlib.Path, fps: float, enlarge: int = 3) -> list[pathlib.Path]:
    """Writes each filmed episode as an animated WebP. Returns the files.

    Args:
      run: with filmed episodes.
      directory: for `TASK-SEED.webp`.
      fps: pictures per second.
      enlarge: each pixel becomes a square of this side.
    """
    written = []
    for episode in run.episodes:
        if episode.film:
            directory.mkdir(parents=True, exist_ok=True)
            written.append(directory / f"{episode.task}-{episode.seed}.webp")
            pictures = [Image.fromarray(p.repeat(enlarge, axis=0).repeat(enlarge, axis=1)) for p in episode.film]
            pictures[0].save(
                written[-1], save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, quality=80
            )
    return written
