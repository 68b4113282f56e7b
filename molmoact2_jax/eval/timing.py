"""Wall times of repeated work, and the numbers that say how they are spread."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Times:
    """Wall times of one kind of work, in milliseconds, in the order they were taken."""

    samples: tuple[float, ...]

    def scaled(self, factor: float) -> Times:
        """Multiplies every sample."""
        return Times(tuple(factor * sample for sample in self.samples))

    def __add__(self, other: Times) -> Times:
        """Adds times that were taken in the same rounds."""
        return Times(tuple(a + b for a, b in zip(self.samples, other.samples, strict=True)))

    def percentile(self, share: float) -> float:
        """Returns the time below which `share` percent of the samples lie, interpolated."""
        return float(np.percentile(self.samples, share))

    def summary(self) -> dict[str, float]:
        """Returns min, p50, p95, p99, mean in milliseconds, and the number of samples."""
        spread = {f"p{share}": self.percentile(share) for share in (50, 95, 99)}
        least, mean = min(self.samples), float(np.mean(self.samples))
        return {"min": least, **spread, "mean": mean, "samples": len(self.samples)}


def rounds(
    work: Mapping[str, Callable[[], Any]], count: int, warmup: int, progress: Progress | None = None
) -> dict[str, Times]:
    """Times several kinds of work one after the other, `count` times, so that what disturbs one disturbs all.

    Args:
      work: what to time, by name, in the order it runs; each returns arrays, which are waited for.
      count: rounds that are measured.
      warmup: rounds before them.
      progress: called with the rounds done and their number.

    Raises:
      ValueError: nothing to measure.
    """
    if count < 1 or warmup < 0:
        raise ValueError(f"rounds: {count} after {warmup} of warm-up, expected at least 1 after at least 0.")
    taken: dict[str, list[float]] = {name: [] for name in work}
    for done in range(warmup + count):
        for name, run in work.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if done >= warmup:
                taken[name].append(1e3 * (time.perf_counter() - begin))
        if progress is not None:
            progress(done + 1, warmup + count)
    return {name: Times(tuple(samples)) for name, samples in taken.items()}
