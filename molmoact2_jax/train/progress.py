"""One line of progress: how far, how fast, how long still."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping


class Progress:
    """Tells the rate over the last steps and the time that is left.

    Compilation and restarts do not distort the rate: it is measured between calls of `line`, over the last ten.
    """

    def __init__(self, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self._num_steps, self._clock = num_steps, clock
        self._seen: collections.deque[tuple[int, float]] = collections.deque(maxlen=10)

    def start(self, step: int) -> None:
        """Starts measuring at a step, the first or after a pause such as a long evaluation."""
        self._seen.clear()
        self._seen.append((step, self._clock()))

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """Returns the line for a finished step, such as `120/2000 6% loss 1.23 | 0.8 steps/s, 39m10s left`."""
        self._seen.append((step, self._clock()))
        (first, since), (last, now) = self._seen[0], self._seen[-1]
        rate = (last - first) / (now - since) if now > since and last > first else None
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        head = f"{step}/{self._num_steps} {100 * step // self._num_steps}% {shown}"
        if rate is None:
            return head
        speed = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"
        return f"{head} | {speed}, {duration((self._num_steps - step) / rate)} left"


def duration(seconds: float) -> str:
    """Writes a time as its two largest units: `3d4h`, `2h05m`, `7m30s`, `12s`."""
    total = round(seconds)
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"
