"""How sure a share of successes is."""

from __future__ import annotations

import math


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the interval that holds the true rate with 95% confidence (Wilson 1927); (0, 1) without trials.

    Unlike the normal approximation it stays inside [0, 1], and is not a point where all or none succeed.

    Args:
      successes: 0 to `trials`.
      trials: independent episodes.
      z: quantile of the normal distribution; 1.96 for 95%.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson: {successes} successes of {trials}, expected between 0 and {trials}.")
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
