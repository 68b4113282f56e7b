"""What goes into and comes out of a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from molmoact2_jax.data import norm_stats
from molmoact2_jax.serve import observe


class DepthDecodeError(ValueError):
    """The model did not end its depth span within the released limit, or wrote no code into it."""


@dataclasses.dataclass(frozen=True)
class DepthCache:
    """What adaptive depth compares the next picture with: first camera u8[H, W, 3] and its codes i32[100]."""

    image: np.ndarray
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Action:
    """One action chunk.

    Attributes:
      actions: f32[n_action_steps, action_dim], robot units.
      trajectory: f32[horizon, 32], normalised, before clipping; 0 past the robot's channels.
      token_ids: i64[N], generated ids (depth span, then discrete action), or None.
      depth_codes: i32[100], or as many as free decoding gave; None without depth.
      depth_cache: for the next call of the same episode, or None.
      passes: forward passes over depth positions, the prefill of an adaptive call included; 0 without depth. Robots of
        one batch share them.
      changed_cells: bool[100], true = predicted anew, raster order; None without depth.
      timing: milliseconds by phase: preprocess (host), model (the compiled program), post (host).
    """

    actions: np.ndarray
    trajectory: np.ndarray
    token_ids: np.ndarray | None
    depth_codes: np.ndarray | None
    depth_cache: DepthCache | None
    passes: int
    changed_cells: np.ndarray | None
    timing: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Cells of the depth grid that were predicted anew."""
        return 0 if self.changed_cells is None else int(self.changed_cells.sum())


@dataclasses.dataclass(frozen=True)
class Options:
    """What a caller chose for a batch; `Policy.predict_action` explains each."""

    mode: str = "continuous"
    depth: str = "off"
    num_steps: int | None = None
    n_action_steps: int | None = None
    seed: int = 0
    strict: bool = True
    strict_cameras: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], host: observe.Host) -> Options:
        """Checks options by themselves and against the checkpoint.

        Raises:
          ValueError: an unknown option or value, or one that the checkpoint cannot serve.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"predict_action: unknown options {unknown}, expected some of {sorted(known)}.")
        chosen = cls(**values)
        _one_of("mode", chosen.mode, ("continuous", "discrete"))
        _one_of("depth", chosen.depth, ("off", "full", "adaptive"))
        if chosen.num_steps is not None and chosen.num_steps < 1:
            raise ValueError(f"num_steps: {chosen.num_steps}, expected at least 1.")
        chosen._fit(host)
        return chosen

    def _fit(self, host: observe.Host) -> None:
        cfg = host.cfg
        if self.mode == "continuous" and cfg.expert is None:
            raise ValueError("mode: 'continuous', but the checkpoint has no action expert. Use mode='discrete'.")
        if self.mode == "discrete" and not cfg.tokens.num_actions:
            raise ValueError("mode: 'discrete', but the checkpoint has no action tokens. Use mode='continuous'.")
        if self.mode == "discrete" and host.codec is None:
            raise ValueError("mode: 'discrete', but no action_tokenizer directory lies beside the checkpoint. Copy it.")
        if self.depth != "off" and not (cfg.depth_reasoning and cfg.tokens.num_depths):
            raise ValueError(f"depth: {self.depth!r}, but the checkpoint does not reason about depth. Use depth='off'.")
        if self.depth != "off" and cfg.expert and cfg.expert.conditioning == "hidden":
            raise ValueError(f"depth: {self.depth!r}, but the expert reads hidden states, of which no cache is kept.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r}, expected one of {allowed}.")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One observation, checked: row, first picture, robot, noise f32[A, C], draft i32[C], cells to predict bool[C]."""

    row: observe.Row
    first: np.ndarray
    tag: norm_stats.Tag
    noise: np.ndarray
    draft: np.ndarray
    changed: np.ndarray
