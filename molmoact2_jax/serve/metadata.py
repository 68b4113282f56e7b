"""What a client has to know of a server: cameras, channels, ranges, horizon, rate, and which weights answer."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from typing import Any

import jax
import numpy as np

import molmoact2_jax
from molmoact2_jax.checkpoint import integrity
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import norm_stats
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import fields, guard
from molmoact2_jax.serve.service import Service


def of(service: Service, name: str, digest: str) -> dict[str, Any]:
    """Returns the metadata, as JSON values.

    Args:
      service: what is served.
      name: of the checkpoint.
      digest: of its weights, see `fingerprint`.
    """
    chosen, tag, cfg = service.settings, service.tag, service.policy.cfg
    horizon = service.policy.host.horizon(tag)
    rate, source = _rate(tag, horizon)
    return {
        "server": f"molmoact2-jax {molmoact2_jax.__version__}",
        "checkpoint": {"name": name, "digest": digest, "dtype": _dtype(service.policy.params)},
        "device": jax.devices()[0].device_kind,
        "norm_tag": chosen.norm_tag,
        "norm_tag_digest": norm_stats.digest(tag),
        "setup": tag.setup,
        "control": tag.control,
        "cameras": list(chosen.cameras),
        "images": "uint8 RGB [height, width, 3], any size, one per camera in this order",
        "state": _channels(tag.state, guard.state_bounds(tag, chosen.checks.margin)),
        "action": _channels(tag.action, (service.limits.low, service.limits.high))
        | {"step": _numbers(service.limits.step), "gripper": service.limits.gripper.tolist()},
        "units": "the robot's own, as recorded in the demonstrations",
        "horizon": horizon,
        "n_action_steps": chosen.n_action_steps or tag.n_action_steps or horizon,
        "rate_hz": rate,
        "rate_source": source,
        "mode": chosen.mode,
        "depth": chosen.depth,
        "num_steps": chosen.num_steps or cfg.flow.num_steps,
        "max_task_tokens": chosen.max_task_tokens,
        "guard": dataclasses.asdict(chosen.checks) | {"step_source": service.limits.step_source},
        **_roboarena(tag, chosen.cameras),
    }


def _channels(stats: norm_stats.TagStats | None, bounds: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    if stats is None:
        return {"names": [], "low": [], "high": []}
    return {"names": list(guard.channel_names(stats)), "low": _numbers(bounds[0]), "high": _numbers(bounds[1])}


def _numbers(values: np.ndarray) -> list[float | None]:
    """Returns numbers with None for what is infinite, which JSON does not have."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _rate(tag: norm_stats.Tag, horizon: int) -> tuple[float, str]:
    """Returns actions per second: those of the demonstrations where the statistics say it, else a chunk per second."""
    known = {dataset.get("fps") for dataset in (tag.provenance or {}).get("datasets", ())}
    if len(known) == 1 and (fps := known.pop()):
        return float(fps), "norm_stats"
    return float(horizon), "a chunk is about one second"


def _dtype(params: Params) -> str:
    """Returns the dtype that most parameters have."""
    sizes: collections.Counter[str] = collections.Counter()
    for leaf in jax.tree.leaves(params):
        sizes[leaf.dtype.name] += leaf.size
    return sizes.most_common(1)[0][0]


def _roboarena(tag: norm_stats.Tag, cameras: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of RoboArena's `PolicyServerConfig`, for the one kind of robot and control it has."""
    if "franka" not in tag.setup or "joint" not in tag.control:
        return {}
    wrist = [camera for camera in cameras if "wrist" in fields.short(camera)]
    return {
        "image_resolution": None,  # the server resizes, exactly as in training
        "needs_wrist_camera": bool(wrist),
        "n_external_cameras": len(cameras) - len(wrist),
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": "joint_position",
    }


def fingerprint(cfg: ModelConfig, params: Params) -> str:
    """Returns what two servers of the same weights in the same dtype share, and others do not.

    It is taken from sums of the bits of every array, so neither files nor the arrangement of layers matter.
    """
    sums: collections.Counter[str] = collections.Counter()
    for name, value in integrity.checksums(params).items():
        sums[re.sub(r"/\d+(?=/)", "", name)] += value
    content = {name: value % 2**32 for name, value in sums.items()} | {"config": repr(cfg)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
