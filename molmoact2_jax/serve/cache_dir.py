"""The persistent compilation cache: on by default, so that a second start does not compile again."""

from __future__ import annotations

import os
import pathlib

import jax


def enable() -> None:
    """Points JAX at `~/.cache/molmoact2_jax`, unless a directory is configured or MOLMOACT2_CACHE=off."""
    choice = os.environ.get("MOLMOACT2_CACHE", "")
    if choice == "off" or jax.config.values["jax_compilation_cache_dir"]:
        return
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", choice or str(base / "molmoact2_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
