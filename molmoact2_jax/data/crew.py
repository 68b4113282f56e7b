"""Calls methods of one object in processes that each hold a copy of it, or in the caller."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import process
from typing import Any

GRACE_S = 30  # a signal to the whole job must not take the batches of its last steps away

Future = concurrent.futures.Future


class Crew:
    """`count` processes with a copy of `target` each; 0 calls the object itself, at once.

    Processes are spawned, since forking a program that runs JAX can hang it. They outlive neither the caller nor
    `close`.
    """

    def __init__(self, target: Any, count: int):
        self._target = target
        self._pool: process.ProcessPoolExecutor | None = None
        if count:
            context = multiprocessing.get_context("spawn")
            self._pool = process.ProcessPoolExecutor(count, context, initializer=_hold, initargs=(target,))

    def submit(self, method: str, *args: Any) -> Future:
        """Starts a call; its result or exception is in the future."""
        if self._pool is not None:
            return self._pool.submit(_call, method, *args)
        future: Future = Future()
        try:
            future.set_result(getattr(self._target, method)(*args))
        except Exception as error:  # the future raises it where the result is asked for
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Drops calls that have not started and ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_held: list[Any] = []  # in a crew's process: the one object it works with


def _hold(target: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _held[:] = [target]


def _call(method: str, *args: Any) -> Any:
    return getattr(_held[0], method)(*args)


def _end_with_parent() -> None:
    """Ends the process when its parent is gone, even killed: nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
