"""Progress of long work on standard error: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from molmoact2_jax.train import progress

FAST, SLOW = 0.2, 10.0  # seconds between updates on a terminal, and in a log


class Meter:
    """Called with (done, total); rewrites one line on a terminal, writes a line now and then elsewhere.

    Work that ends within a second shows nothing in a log.
    """

    def __init__(self, what: str, unit: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._what, self._unit, self._clock = what, unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._start = self._shown = clock()
        self._first: int | None = None
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first, self._start = done, now
        elif now - self._shown >= (FAST if self._live else SLOW) or (self._live and done >= total):
            self._shown = now
            self._write(self._line(done, total, now))

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._width:
            self._stream.write("\n")
            self._stream.flush()

    def _line(self, done: int, total: int, now: float) -> str:
        assert self._first is not None
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = f", {progress.duration((total - done) / rate)} left" if rate > 0 else ""
        return f"{self._what}: {done}/{total} {self._unit}, {rate:.3g}/s{left}"

    def _write(self, line: str) -> None:
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
