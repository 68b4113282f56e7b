"""Trains, fine-tunes, evaluates and serves MolmoAct2 in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molmoact2_jax import checkpoint, config
    from molmoact2_jax.batch import Observation
    from molmoact2_jax.serve.policy import Policy
    from molmoact2_jax.serve.records import Action, DepthCache, DepthDecodeError
    from molmoact2_jax.serve.session import Episode
    from molmoact2_jax.text.actions import ActionDecodeError
    from molmoact2_jax.text.prompt import Message

__version__ = "0.1.0"
__all__ = [
    "Action",
    "ActionDecodeError",
    "DepthCache",
    "DepthDecodeError",
    "Episode",
    "Message",
    "Observation",
    "Policy",
    "checkpoint",
    "config",
]

_HOMES = {
    "Action": "serve.records",
    "ActionDecodeError": "text.actions",
    "DepthCache": "serve.records",
    "DepthDecodeError": "serve.records",
    "Episode": "serve.session",
    "Message": "text.prompt",
    "Observation": "batch",
    "Policy": "serve.policy",
}


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used, so that the commands and the data side start fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "checkpoint":
        importlib.import_module(f"{__name__}.checkpoint.hf")
    if name in ("checkpoint", "config"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
