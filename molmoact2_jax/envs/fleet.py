"""Many environments at once, in processes of their own, each in a numbered slot."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from molmoact2_jax.envs import registry
from molmoact2_jax.envs.base import Environment, Frame, Spec


@dataclasses.dataclass(frozen=True)
class Start:
    """An episode to begin: task and seed, and whether its pictures are wanted after every decision."""

    task: str
    seed: int
    film: bool = False


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a slot did.

    Attributes:
      frame: how it looks now.
      decisions: how many actions were carried out; fewer than given where the episode came to its end.
      success: whether the last of them succeeded.
      ended: whether the episode can go no further.
      film: frames after each action but the last, if asked for.
    """

    frame: Frame
    decisions: int = 0
    success: bool = False
    ended: bool = False
    film: tuple[Frame, ...] = ()


class Slots:
    """The environments of one process. A slot that keeps its task keeps its simulator."""

    def __init__(self, env: str, options: Mapping[str, Any]):
        self._env, self._options = env, dict(options)
        self._slots: dict[int, Environment] = {}
        self._film: dict[int, bool] = {}

    def spec(self, slot: int) -> Spec:
        """Returns what the environment of a slot is."""
        return self._slots[slot].spec

    def reset(self, slot: int, start: Start) -> Progress:
        """Begins an episode."""
        old = self._slots.get(slot)
        if old is None or old.spec.task != start.task:
            if old is not None:
                self._slots.pop(slot).close()
            self._slots[slot] = registry.open_environment(self._env, start.task, **self._options)
        self._film[slot] = start.film
        return Progress(self._slots[slot].reset(start.seed))

    def advance(self, slot: int, actions: np.ndarray) -> Progress:
        """Carries out f32[N, C] until they, or the episode, come to their end."""
        env, film = self._slots[slot], list[Frame]()
        for count, action in enumerate(actions, 1):
            outcome = env.step(action)
            if outcome.success or outcome.ended or count == len(actions):
                return Progress(env.observe(), count, outcome.success, outcome.ended, tuple(film))
            if self._film[slot]:
                film.append(env.observe())
        raise ValueError(f"{self._env}: a plan without actions, expected at least one.")

    def close(self) -> None:
        """Closes all environments."""
        for env in self._slots.values():
            env.close()
        self._slots.clear()


class Fleet:
    """Slots 0..N-1 spread over processes. All slots of a call run at the same time, one after another in a process."""

    def __init__(self, env: str, options: Mapping[str, Any], num_processes: int):
        """Starts the processes; 0 runs everything in the caller.

        Processes are spawned, since forking a program that runs JAX can hang it.
        """
        self._local = Slots(env, options) if num_processes == 0 else None
        self._pipes: list[Connection] = []
        self._processes = []
        context = multiprocessing.get_context("spawn")
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, env, dict(options)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, method: str, arguments: Mapping[int, tuple]) -> dict[int, Any]:
        """Calls a method of `Slots` for several slots.

        Args:
          method: its name.
          arguments: what follows the slot, by slot.

        Returns:
          The results by slot.

        Raises:
          Exception: what the first slot that failed raised; `ChildProcessError` where its process died.
        """
        if self._local is not None:
            return {slot: getattr(self._local, method)(slot, *given) for slot, given in arguments.items()}
        shares: dict[int, list] = {}
        for slot, given in sorted(arguments.items()):
            shares.setdefault(slot % len(self._pipes), []).append((method, slot, given))
        for index, share in shares.items():
            self._pipes[index].send(share)
        results: dict[int, Any] = {}
        for index in shares:
            results.update(self._receive(index))
        return results

    def _receive(self, index: int) -> dict[int, Any]:
        try:
            answer = self._pipes[index].recv()
        except EOFError:
            self._processes[index].join()
            code = self._processes[index].exitcode
            raise ChildProcessError(
                f"envs: a simulator's process ended with status {code}, expected an answer."
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()  # a worker that waits for orders sees the end of the pipe
        for process in self._processes:
            process.join()
        if self._local is not None:
            self._local.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _serve(pipe: Connection, env: str, options: Mapping[str, Any]) -> None:
    """Carries out orders until the pipe ends, which it does with the parent too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it as well, closes the pipe
    slots = Slots(env, options)
    while True:
        try:
            orders = pipe.recv()
        except EOFError:
            return slots.close()
        try:
            answer: Any = {slot: getattr(slots, method)(slot, *given) for method, slot, given in orders}
        except Exception as error:  # it is raised in the parent
            answer = error
        pipe.send(answer)
