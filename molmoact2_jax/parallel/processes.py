"""Starts the processes of a run: SLURM, TPU pods, GKE JobSets, by hand, or alone. No rank is ever given as a flag."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax

_log = logging.getLogger(__name__)

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was launched.

    Attributes:
      kind: "hand", "slurm", "tpu" or "single".
      arguments: of `jax.distributed.initialize`; empty where jax finds them itself.
    """

    kind: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def detect(env: Mapping[str, str], *, tpu: bool) -> Launch:
    """Finds out from the environment who launched this process.

    By hand (and in the JobSet file): `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, the last of
    which `JOB_COMPLETION_INDEX` of an indexed Kubernetes job replaces. SLURM: the variables of a job step. TPU: the
    machine has TPUs, and jax asks its metadata.

    Args:
      env: environment variables.
      tpu: whether this machine has TPUs.

    Raises:
      ValueError: only a part of the variables of a launch by hand is set.
    """
    if "JAX_COORDINATOR_ADDRESS" in env:
        return _by_hand(env)
    if all(name in env for name in _SLURM):
        return Launch("slurm", {"cluster_detection_method": "slurm", "local_device_ids": slurm_devices(env)})
    if tpu and "tpu" in env.get("JAX_PLATFORMS", "tpu"):
        return Launch("tpu")
    return Launch("single")


def _by_hand(env: Mapping[str, str]) -> Launch:
    found = {
        "JAX_NUM_PROCESSES": env.get("JAX_NUM_PROCESSES"),
        "JAX_PROCESS_ID": env.get("JAX_PROCESS_ID", env.get("JOB_COMPLETION_INDEX")),
    }
    for name, value in found.items():
        if value is None or not value.isdecimal():
            raise ValueError(
                f"processes.start: {name} is {value!r}, expected a number because JAX_COORDINATOR_ADDRESS is set. "
                "Set all three, or none to run one process."
            )
    count, index = (int(str(value)) for value in found.values())
    if index >= count:
        raise ValueError(f"processes.start: JAX_PROCESS_ID is {index}, expected less than {count}. Count from 0.")
    return Launch(
        "hand",
        dict(coordinator_address=env["JAX_COORDINATOR_ADDRESS"], num_processes=count, process_id=index,
             cluster_detection_method="deactivate"),
    )  # fmt: skip


def slurm_devices(env: Mapping[str, str]) -> list[int] | None:
    """Numbers the GPUs of this SLURM task among those it can see; None where there are none.

    One task per node takes all, one task per GPU its own, however the site hides GPUs from tasks.

    Raises:
      ValueError: the GPUs of a node cannot be divided among its tasks.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    num_gpus = len(visible.split(",")) if visible else int(env.get("SLURM_GPUS_ON_NODE", "0"))
    if num_gpus == 0:
        return None
    num_tasks = int(env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    if num_gpus == 1:
        return [0]
    if num_gpus % num_tasks:
        raise ValueError(
            f"processes.start: {num_gpus} GPUs for {num_tasks} tasks on a node, expected a multiple. "
            "Set --ntasks-per-node to 1 or to the number of GPUs."
        )
    each = num_gpus // num_tasks
    first = each * int(env["SLURM_LOCALID"])
    return list(range(first, first + each))


def _has_tpu() -> bool:
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def start() -> Launch:
    """Joins this process to the others of its run. Call it before anything touches a device; again it does nothing.

    Returns:
      How it was launched; `jax.process_index()` and `jax.process_count()` hold from now on.

    Raises:
      ValueError: the environment is contradictory (`detect`).
    """
    launch = detect(os.environ, tpu=_has_tpu())
    if launch.kind != "single" and not jax.distributed.is_initialized():
        _log.info("joining the other processes (%s) ...", launch.kind)
        jax.distributed.initialize(**launch.arguments)
    _log.info(
        "process %d of %d (%s): %d of %d devices, %s",
        jax.process_index(), jax.process_count(), launch.kind, jax.local_device_count(), jax.device_count(),
        jax.devices()[0].device_kind,
    )  # fmt: skip
    return launch


def is_first() -> bool:
    """Whether this process writes logs and pictures for all."""
    return jax.process_index() == 0
