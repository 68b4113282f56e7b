"""Choosing how MuJoCo draws pictures without a screen, before it is imported: it reads `MUJOCO_GL` only then."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import subprocess
import sys
import types

log = logging.getLogger(__name__)

PATIENCE = 120.0  # seconds for the probe; a driver without its device may hang
PROBE = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
HINT = (
    "Install one: apt-get install -y libegl1 libgl1 libosmesa6 (or, without root, pip install --no-deps lavavu-osmesa "
    "and put the wheel's lavavu_osmesa.libs folder on LD_LIBRARY_PATH)."
)


def choose() -> str:
    """Sets `MUJOCO_GL`, unless it is set, to the first of egl and osmesa that works here; child processes inherit it.

    Other systems than Linux draw without a screen as they are.

    Returns:
      The name of the backend, "" for the system's own.

    Raises:
      OSError: none works, with what to install; or MuJoCo would try to open a window where there is no screen,
        which ends the process.
    """
    if not sys.platform.startswith("linux"):
        return os.environ.get("MUJOCO_GL", "")
    _refuse_windows()
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = _first_that_works()
        log.info("MuJoCo draws with %s.", os.environ["MUJOCO_GL"])
    return os.environ["MUJOCO_GL"]


def load() -> types.ModuleType:
    """Imports MuJoCo after `choose`; this import is where a missing library for drawing shows.

    Raises:
      OSError: see `choose`; or the backend that the user set does not work.
    """
    choose()
    try:
        return importlib.import_module("mujoco")
    except (AttributeError, RuntimeError) as error:  # PyOpenGL looks functions up in a library that is None
        raise OSError(f"rendering: {state()} does not work here ({error}). {HINT}") from error


def _refuse_windows() -> None:
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    if os.environ.get("MUJOCO_GL", "egl").lower() not in ("egl", "osmesa"):
        raise OSError(f"rendering: {state()} without a display, expected egl or osmesa. Unset MUJOCO_GL.")
    loaded = sys.modules.get("mujoco.gl_context")
    if loaded is not None and loaded.GLContext.__module__.endswith("glfw"):
        raise OSError(
            "rendering: mujoco was imported before a way to draw was chosen, expected it after. Import "
            "molmoact2_jax.envs.rendering and call choose() first, or set MUJOCO_GL=egl."
        )


def state() -> str:
    """Says how MuJoCo draws, for result files and errors."""
    return f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"


@functools.cache
def _first_that_works(backends: tuple[str, ...] = ("egl", "osmesa")) -> str:
    for backend in backends:
        if works(backend):
            return backend
    raise OSError(f"rendering: neither {' nor '.join(backends)} works here, expected a library that draws. {HINT}")


def works(backend: str) -> bool:
    """Tells, in a process of its own, whether a context can be made; a failed try would spoil this process."""
    environment = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        log.warning(
            "rendering: a try of MUJOCO_GL=%s did not end within %.0f s; it counts as failed", backend, PATIENCE
        )
        return False
    log.debug("MUJOCO_GL=%s: %s", backend, probe.stderr.decode(errors="replace")[-300:] or "works")
    return probe.returncode == 0
