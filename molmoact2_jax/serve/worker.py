"""One thread that computes for many clients: they take turns, and calls that wait together may run together."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any


class BusyError(RuntimeError):
    """More calls wait than the server takes, or it is about to end."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A call that waits.

    Attributes:
      client: whose it is; clients take turns.
      key: calls of equal keys may be computed together.
      payload: what to compute.
      result: set to what was computed, or to the error.
    """

    client: Hashable
    key: Hashable
    payload: Any
    result: concurrent.futures.Future[Any]


class Worker:
    """Runs `compute` in a thread of its own, in fair order."""

    def __init__(
        self, compute: Callable[[Sequence[Any]], Sequence[Any]], *, most_together: int = 1, most_waiting: int = 64
    ):
        """Starts the thread.

        Args:
          compute: takes payloads of equal keys and returns as many results; a result that is an exception is that
            call's error. What it raises itself is the error of all.
          most_together: payloads per call of `compute`.
          most_waiting: calls that may wait, of all clients.
        """
        self._compute, self._most_together, self._most_waiting = compute, most_together, most_waiting
        self._lines: collections.OrderedDict[Hashable, collections.deque[Job]] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        with self._changed:
            return sum(map(len, self._lines.values()))

    def submit(self, client: Hashable, key: Hashable, payload: Any) -> concurrent.futures.Future[Any]:
        """Puts a call at the end of its client's line.

        Returns:
          Its result to come. Cancelling it takes the call out of the line, unless it has begun.

        Raises:
          BusyError: too many wait, or the worker was closed.
        """
        job = Job(client, key, payload, concurrent.futures.Future())
        with self._changed:
            if self._closed:
                raise BusyError("server: is ending, expected a running one. Connect to another.")
            if sum(map(len, self._lines.values())) >= self._most_waiting:
                raise BusyError(f"server: {self._most_waiting} calls are waiting, expected fewer. Try again later.")
            self._lines.setdefault(client, collections.deque()).append(job)
            self._changed.notify_all()
        return job.result

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more calls and waits until those it has are done; says whether they are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while jobs := self._next():
            try:
                results = self._compute([job.payload for job in jobs])
            except Exception as error:  # whatever it is, it belongs to these callers, and the thread goes on
                results = [error] * len(jobs)
            for job, result in zip(jobs, results, strict=True):
                if isinstance(result, BaseException):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

    def _next(self) -> list[Job]:
        """Waits for calls and returns those to compute together; none when the worker is closed and idle."""
        with self._changed:
            while True:
                if first := self._take(None):
                    return [first, *self._more(first.key)]
                if self._closed:
                    return []
                self._changed.wait()

    def _more(self, key: Hashable) -> list[Job]:
        found: list[Job] = []
        while len(found) < self._most_together - 1 and (job := self._take((key,))):
            found.append(job)
        return found

    def _take(self, wanted: tuple[Hashable] | None) -> Job | None:
        """Takes the first call of the client whose turn it is, of a wanted key; that client is last from then on."""
        for client in list(self._lines):
            line = self._lines[client]
            while line and line[0].result.cancelled():
                line.popleft()
            if line and (wanted is None or line[0].key == wanted[0]):
                job = line.popleft()
                self._lines.move_to_end(client)
                if job.result.set_running_or_notify_cancel():
                    return job
                return self._take(wanted)
            if not line:
                del self._lines[client]
        return None
