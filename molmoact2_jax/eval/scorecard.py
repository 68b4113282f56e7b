"""What a policy achieved in a simulator: checks before, a result file with its protocol after."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.data import norm_stats
from molmoact2_jax.data.norm_stats import Tag
from molmoact2_jax.envs.base import Spec
from molmoact2_jax.eval import intervals, rollout
from molmoact2_jax.nn import paths
from molmoact2_jax.serve import observe
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


def untrained(directory: str | pathlib.Path, dtype: str, seed: int = 0) -> Policy:
    """Returns the model of a checkpoint with the weights that training would start from; its own are not read.

    Args:
      directory: in the released format, or a run, which may be at an address.
      dtype: to compute in.
      seed: of the weights, as `seed` of a training run.
    """
    from molmoact2_jax.checkpoint import runs  # these need the train extra
    from molmoact2_jax.train import stages

    cfg = runs.read_model(directory)
    host = observe.Host.load(runs.side_directory(directory), cfg)
    weights, _ = stages.enter(cfg, None, {}, jax.random.key(seed))
    return Policy(host, jax.tree.map(lambda leaf: leaf.astype(dtype), weights))


def digest(policy: Policy, tag: str) -> str:
    """Returns a fingerprint of all that a checkpoint brings to a rollout: sizes, weights, the robot's statistics."""
    found = hashlib.sha256(repr(policy.cfg).encode())
    found.update(norm_stats.digest(policy.host.tag(tag)).encode())
    for name, leaf in zip(paths.names(policy.params), jax.tree.leaves(policy.params), strict=True):
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


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


def identity(protocol: rollout.Protocol, policy: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Returns what must be the same for episodes to belong to one result.

    The directory of the checkpoint may change and the number of processes too; neither changes an episode.
    """
    return dict(
        policy={name: value for name, value in policy.items() if name != "checkpoint"},
        protocol={k: v for k, v in dataclasses.asdict(protocol).items() if k != "num_processes"},
        environment=dict(settings=spec.settings, versions=spec.versions),
        versions=versions(),
    )


def record(done: rollout.Round) -> dict[str, Any]:
    """Returns what is kept of a round, as JSON values."""
    return dict(
        episodes=[episode.facts(done.specs[episode.task]) for episode in done.episodes],
        plans=done.num_plans,
        seconds=done.seconds,
    )


def result(
    protocol: rollout.Protocol, policy: Mapping[str, Any], spec: Spec, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the result file: success with 95% intervals, every episode, and all that is needed to repeat it.

    Args:
      protocol: what was asked.
      policy: facts about the checkpoint.
      spec: of any task of the environment.
      records: of all rounds.
    """
    facts = [episode for each in records for episode in each["episodes"]]
    of = {task: [each for each in facts if each["task"] == task] for task in protocol.tasks}
    same = {k: v for k, v in dataclasses.asdict(spec).items() if k not in ("task", "instruction", "horizon")}
    phases = records[0]["seconds"]
    return dict(
        kind="rollout",
        policy=dict(policy),
        protocol=dataclasses.asdict(protocol) | {"horizon": protocol.horizon or spec.horizon},
        environment=same,
        machine=machine(),
        success=share(facts),
        tasks={task: share(each) for task, each in of.items()},
        motion=_motion(facts),
        episodes=[episode for each in of.values() for episode in each],
        seconds={phase: round(sum(each["seconds"][phase] for each in records), 2) for phase in phases},
        plans=sum(each["plans"] for each in records),
    )


def _motion(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over episodes of how the robot was moved (`trajectory`)."""
    seams = [each["seam_ratio"] for each in facts if each["seam_ratio"] is not None]
    return dict(
        roughness=float(np.mean([each["roughness"] for each in facts])),
        seam_ratio=float(np.mean(seams)) if seams else None,
        saturation={n: float(np.mean([each["saturation"][n] for each in facts])) for n in facts[0]["saturation"]},
    )


def share(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the share of successes with its interval, and how long the successful ones took."""
    lengths = [episode["decisions"] for episode in episodes if episode["success"]]
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
        **versions(),
    )


def versions() -> dict[str, str]:
    """Returns the packages that decide what a policy computes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
