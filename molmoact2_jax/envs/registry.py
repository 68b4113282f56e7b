"""Simulators by name. An adapter, and the packages it needs, are imported only when one is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from molmoact2_jax.envs.base import Environment

ADAPTERS = {"metaworld": "molmoact2_jax.envs.metaworld:MetaWorld", "toy": "molmoact2_jax.envs.toy:Toy"}


def adapter(name: str) -> type[Environment]:
    """Returns an adapter.

    Args:
      name: a key of `ADAPTERS`, or "package.module:Class" for one that lives outside this library.

    Raises:
      ValueError: an unknown name.
      ModuleNotFoundError: the simulator is not installed; says what installs it.
    """
    path = ADAPTERS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError(
            f"env: {name!r}, expected one of {sorted(ADAPTERS)}. For your own simulator, give 'package.module:Class'."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if name not in ADAPTERS:
            raise
        raise ModuleNotFoundError(
            f"env: {name} needs the package {error.name!r}. Install the simulators: pip install 'molmoact2-jax[sim]'.",
            name=error.name,
        ) from error
    return found


def open_environment(name: str, task: str, **options: Any) -> Environment:
    """Starts one task of a simulator.

    Args:
      name: as for `adapter`.
      task: one of the adapter's tasks.
      **options: the adapter's own.

    Raises:
      ValueError: an unknown simulator or task.
      ModuleNotFoundError: the simulator is not installed.
      OSError: nothing here draws pictures.
    """
    found = adapter(name)
    require_tasks(name, [task])
    return found(task, **options)  # type: ignore[call-arg]


def require_tasks(name: str, tasks: Iterable[str]) -> None:
    """Checks names of tasks before work is spent on the first of them.

    Raises:
      ValueError: a name that the simulator does not have; lists near ones.
    """
    known = adapter(name).instructions()
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, 3, 0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(sorted(known))}."
            raise ValueError(f"{name}: no task {task!r}, expected one of {len(known)}. {hint}")
