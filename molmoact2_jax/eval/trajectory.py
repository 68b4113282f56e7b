"""How a robot moves, from the actions it carried out: smoothness, jumps between chunks, saturation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def roughness(actions: np.ndarray) -> float:
    """Returns the mean norm of the second difference over the mean norm of the actions; 0 for a constant command.

    Args:
      actions: f32[T, C], in the order they were carried out.
    """
    if len(actions) < 3:
        return 0.0
    bends = np.linalg.norm(np.diff(actions, n=2, axis=0), axis=-1).mean()
    return float(bends / max(np.linalg.norm(actions, axis=-1).mean(), 1e-9))


def seam_ratio(actions: np.ndarray, plans: Sequence[int]) -> float:
    """Compares steps across the seams of chunks with steps inside chunks; 1 where a seam is as smooth as the rest.

    Args:
      actions: f32[T, C].
      plans: how many actions of each plan were carried out; they sum to T.

    Returns:
      Mean norm of the change at the seams over that inside, NaN where there are none of either.
    """
    seams = np.cumsum(plans)[:-1] - 1
    changes = np.linalg.norm(np.diff(actions, axis=0), axis=-1)
    across = np.isin(np.arange(len(changes)), seams)
    if not across.any() or across.all():
        return float("nan")
    return float(changes[across].mean() / max(changes[~across].mean(), 1e-9))


def saturation(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns f32[C], the share of the time that each channel is at a bound of its range."""
    edge = 1e-3 * (high - low)
    return np.mean((actions <= low + edge) | (actions >= high - edge), axis=0).astype(np.float32)
