"""What a measurement ran on: without it a time means nothing."""

from __future__ import annotations

import os
import pathlib
import platform
from typing import Any

import flax
import jax
import jaxlib
import numpy as np

import molmoact2_jax

# settings of jax that change how fast a program is, or what it computes
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_threefry_partitionable",
)
VARIABLES = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION",
             "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LIBTPU_INIT_ARGS")  # fmt: skip


def describe() -> dict[str, Any]:
    """Returns devices, processor, versions and the settings that matter, as JSON values."""
    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "platform": devices[0].platform,
        "platform_version": " ".join(devices[0].client.platform_version.split()),
        "device_memory_bytes": (devices[0].memory_stats() or {}).get("bytes_limit"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "molmoact2-jax": molmoact2_jax.__version__, "python": platform.python_version(), "jax": jax.__version__,
            "jaxlib": jaxlib.__version__, "flax": flax.__version__, "numpy": np.__version__,
        },
        "settings": {name: jax.config.values.get(name) for name in SETTINGS},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }  # fmt: skip


def _processor() -> str:
    listed = pathlib.Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def short(found: dict[str, Any]) -> str:
    """Returns the line that stands above a table of times."""
    versions, settings = found["versions"], found["settings"]
    device = f"{found['devices']} x {found['device']}"
    flags = [f"XLA_FLAGS={value}" for name, value in found["environment"].items() if name == "XLA_FLAGS"]
    parts = [
        device,
        f"{found['processor']}, {found['usable_cores']} of {found['cores']} cores, load {found['load_average']:.1f}",
        f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, python {versions['python']}",
        f"matmul precision {settings['jax_default_matmul_precision'] or 'default'}",
        *flags,
    ]
    return "\n".join(parts)
