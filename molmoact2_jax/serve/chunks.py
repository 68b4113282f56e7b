"""Executes chunks without standing still between them: the next one is asked for while the present one is executed.

An answer is late by as many actions as were executed since its observation was taken, whatever a clock says: those are
skipped, so that each action is executed at the step that it was planned for. Needs numpy alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass
class Counts:
    """What happened so far.

    Attributes:
      executed: actions handed out.
      held: steps without an action, in which the robot has to hold still.
      asked: observations sent.
      skipped: actions of new chunks that came too late.
      replaced: actions of old chunks that a newer one took the place of.
      failed: calls that ended with an error.
      most_delay: executed actions between an observation and its answer, at most.
    """

    executed: int = 0
    held: int = 0
    asked: int = 0
    skipped: int = 0
    replaced: int = 0
    failed: int = 0
    most_delay: int = 0


@dataclasses.dataclass(frozen=True)
class _Asked:
    answer: concurrent.futures.Future[np.ndarray]
    executed: int  # actions that had been handed out when the observation was taken


class Runner:
    """Hands out one action per control step."""

    def __init__(
        self, ask: Callable[[Any], np.ndarray], *, ahead: int, executor: concurrent.futures.Executor | None = None
    ):
        """Starts without actions.

        Args:
          ask: takes an observation and returns a chunk f32[N, D]; called in another thread, one call at a time.
          ahead: asks when no more than so many actions are left. A chunk must have more than that; `molmoact2 probe`
            says how many a call takes.
          executor: where `ask` runs (None: a thread of its own).

        Raises:
          ValueError: `ahead` is negative.
        """
        if ahead < 0:
            raise ValueError(f"ahead: {ahead}, expected 0 or more.")
        self.counts = Counts()
        self._ask, self._ahead = ask, ahead
        self._executor = executor or concurrent.futures.ThreadPoolExecutor(1, "chunks")
        self._left: collections.deque[np.ndarray] = collections.deque()
        self._asked: _Asked | None = None
        self._error: Exception | None = None

    def step(self, observe: Callable[[], Any]) -> np.ndarray | None:
        """Returns the action f32[D] of this control step.

        Args:
          observe: looks at the robot; called only when an observation is sent.

        Returns:
          None where there is none yet: the robot holds what it holds. Nothing is made up in its place.

        Raises:
          Exception: what `ask` raised last, once no action is left. Until then the robot goes on with what it has, and
            the next step asks again; so does a step after the error.
        """
        self._collect()
        if self._error is not None and not self._left:
            error, self._error = self._error, None
            raise error
        if self._asked is None and len(self._left) <= self._ahead:
            self._asked = _Asked(self._executor.submit(self._ask, observe()), self.counts.executed)
            self.counts.asked += 1
        if not self._left:
            self.counts.held += 1
            return None
        self.counts.executed += 1
        return self._left.popleft()

    def reset(self) -> None:
        """Starts another episode: drops the actions that are left, and the answer that is on its way."""
        self._left.clear()
        self._error = None
        if self._asked is not None:
            self._asked.answer.cancel()
            self._asked = None

    def close(self) -> None:
        """Ends the thread, after the call that it is in."""
        self.reset()
        self._executor.shutdown()

    def _collect(self) -> None:
        """Takes over an answer that has come, without the actions whose steps are past."""
        if self._asked is None or not self._asked.answer.done():
            return
        asked, self._asked = self._asked, None
        try:
            chunk = asked.answer.result()
        except Exception as error:  # of whatever kind: `step` raises it when the actions have run out
            self.counts.failed += 1
            self._error = error
            return
        self._error = None
        delay = self.counts.executed - asked.executed
        self.counts.most_delay = max(self.counts.most_delay, delay)
        self.counts.skipped += min(delay, len(chunk))
        if delay < len(chunk):
            self.counts.replaced += len(self._left)
            self._left = collections.deque(chunk[delay:])


def run(
    runner: Runner,
    observe: Callable[[], Any],
    execute: Callable[[np.ndarray], Any],
    *,
    rate_hz: float,
    steps: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Any] = time.sleep,
) -> int:
    """Executes actions at a rate.

    Args:
      runner: where they come from.
      observe: looks at the robot.
      execute: sends one action f32[D] to the robot; not called in a step that has none.
      rate_hz: steps per second.
      steps: how many, those without an action included.
      clock: now, in seconds.
      sleep: waits for so many seconds.

    Returns:
      Steps that took longer than a period. The ones behind them keep their distance; nothing is caught up in a burst.

    Raises:
      Exception: see `Runner.step`.
    """
    period, late, due = 1 / rate_hz, 0, clock()
    for _ in range(steps):
        action = runner.step(observe)
        if action is not None:
            execute(action)
        due += period
        left = due - clock()
        if left < 0:
            late, due = late + 1, clock()
        sleep(max(left, 0))
    return late


def steps_ahead(seconds: float, rate_hz: float) -> int:
    """Returns the actions that are executed while a call takes `seconds`, rounded up: what `ahead` has to be."""
    return math.ceil(seconds * rate_hz)
