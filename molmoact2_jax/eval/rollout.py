"""Closed-loop evaluation: many episodes at once, one batch of plans at a time, the protocol beside the result."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.envs import base, fleet, registry
from molmoact2_jax.envs.base import Frame, Spec
from molmoact2_jax.eval import trajectory

log = logging.getLogger(__name__)

# (observations, noise seeds of each) -> f32[N, C] in robot units for each: what to do next
Planner = Callable[[Sequence[Observation], Sequence[tuple[int, ...]]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What was asked of a policy; with the versions it decides every episode.

    Attributes:
      env: name of the simulator (`registry`).
      tasks: names of its tasks.
      seeds: of the episodes of each task.
      norm_tag: name of the robot in the checkpoint.
      cameras: the environment's cameras in the order of the prompt; () takes the environment's.
      executed: actions of a plan that are carried out before the next plan.
      horizon: decisions after which an episode has failed; None takes the task's own.
      instructions: other words for a task than its own, for controls.
      noise_seed: of the flow's noise, which also depends on episode and plan.
      num_envs: episodes that run at the same time; the size of the batches.
      num_processes: that run the simulators; 0 the caller's.
      options: of the simulator's adapter.
      filmed: seeds whose pictures are kept.
    """

    env: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    norm_tag: str
    executed: int
    cameras: tuple[str, ...] = ()
    horizon: int | None = None
    instructions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    noise_seed: int = 0
    num_envs: int = 12
    num_processes: int = 2
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    filmed: tuple[int, ...] = ()


@dataclasses.dataclass
class Episode:
    """One episode as it goes on.

    Attributes:
      task: name of the task.
      seed: of the environment.
      instruction: what the policy was told.
      success: by the simulator.
      actions: f32[C] each, as they were carried out.
      plans: how many actions of each plan were.
      seen: what the first camera showed at each plan and at the end, u8[H, W, 3].
      film: the same after every action, the first before any; empty unless filmed.
    """

    task: str
    seed: int
    instruction: str
    success: bool = False
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    plans: list[int] = dataclasses.field(default_factory=list)
    seen: list[np.ndarray] = dataclasses.field(default_factory=list)
    film: list[np.ndarray] = dataclasses.field(default_factory=list)

    def facts(self, spec: Spec) -> dict[str, Any]:
        """Returns what the result file says about it."""
        actions = np.array(self.actions)
        seams = trajectory.seam_ratio(actions, self.plans)
        saturated = trajectory.saturation(actions, *spec.bounds)
        return dict(
            task=self.task,
            seed=self.seed,
            instruction=self.instruction,
            success=self.success,
            decisions=len(self.actions),
            roughness=trajectory.roughness(actions),
            seam_ratio=None if np.isnan(seams) else seams,
            saturation={name: float(value) for name, value in zip(spec.action_names, saturated)},
        )


@dataclasses.dataclass(frozen=True)
class Round:
    """Episodes that ran together, in the order of seeds and tasks.

    Attributes:
      episodes: all finished.
      specs: what the tasks are.
      seconds: by phase.
      num_plans: asked of the policy, filling of batches not counted.
    """

    episodes: list[Episode]
    specs: dict[str, Spec]
    seconds: dict[str, float]
    num_plans: int


def orders(protocol: Protocol) -> list[list[tuple[str, int]]]:
    """Returns the tasks and seeds of each round: up to `num_envs` tasks, with seeds for two episodes per environment.

    A round depends on the protocol alone and on no round before it, so an interrupted rollout that goes on with the
    next round ends as an uninterrupted one. Rounds of the same tasks follow each other, since a simulator that changes
    its task starts anew.
    """
    rounds = []
    for first in range(0, len(protocol.tasks), protocol.num_envs):
        tasks = protocol.tasks[first : first + protocol.num_envs]
        count = max(1, 2 * protocol.num_envs // len(tasks))
        for start in range(0, len(protocol.seeds), count):
            rounds.append([(task, seed) for seed in protocol.seeds[start : start + count] for task in tasks])
    return rounds


def rounds(
    protocol: Protocol, plan: Planner, progress: Callable[[int, int], None] | None = None, first: int = 0
) -> Iterator[Round]:
    """Runs the rounds of a protocol.

    Episodes start, and batches are put together, in an order that depends on the protocol and on the episodes alone,
    so a second run gives the same outcomes.

    Args:
      protocol: what to run.
      plan: the policy; its batch always has `protocol.num_envs` entries, so that one program serves.
      progress: called with (episodes done, all).
      first: rounds that were run before and are left out.

    Raises:
      ValueError: an unknown task, no episodes, or actions that do not fit the environment.
    """
    registry.require_tasks(protocol.env, protocol.tasks)
    if not (protocol.tasks and protocol.seeds and protocol.executed >= 1 and protocol.num_envs >= 1):
        raise ValueError("rollout: expected at least one task, seed, executed action and environment. Ask for more.")
    planned = orders(protocol)
    done, total = sum(map(len, planned[:first])), sum(map(len, planned))
    if done == total:
        return
    with fleet.Fleet(protocol.env, protocol.options, min(protocol.num_processes, protocol.num_envs)) as envs:
        for order in planned[first:]:
            loop = _Loop(protocol, order, envs, plan)
            for count in loop.run():
                if progress is not None:
                    progress(done + count, total)
            done += len(order)
            yield loop.round()


class _Loop:
    """One round: episodes in slots, and those that wait."""

    def __init__(self, protocol: Protocol, order: Sequence[tuple[str, int]], envs: fleet.Fleet, plan: Planner):
        self.protocol, self.order, self.envs, self.plan = protocol, order, envs, plan
        self.waiting = {task: [seed for name, seed in order if name == task] for task in protocol.tasks}
        self.active: dict[int, Episode] = {}
        self.frames: dict[int, Frame] = {}
        self.last_task: dict[int, str] = {}
        self.finished: list[Episode] = []
        self.specs: dict[str, Spec] = {}
        self.seconds = dict(simulator=0.0, policy=0.0)
        self.num_plans = 0

    def run(self) -> Iterator[int]:
        """Yields how many episodes have ended, whenever that may have changed."""
        begin = time.perf_counter()
        while self._start() or self.active:
            self._advance(self._plans())
            yield len(self.finished)
        self.seconds["total"] = time.perf_counter() - begin

    def round(self) -> Round:
        """Returns what happened."""
        place = {key: i for i, key in enumerate(self.order)}
        episodes = sorted(self.finished, key=lambda episode: place[episode.task, episode.seed])
        return Round(episodes, self.specs, self.seconds, self.num_plans)

    def _start(self) -> bool:
        """Fills free slots; returns whether any was filled."""
        starts = {}
        for slot in range(self.protocol.num_envs):
            if slot not in self.active and (order := self._next(slot)):
                task, seed = order
                self.active[slot] = Episode(task, seed, self.protocol.instructions.get(task, ""))
                starts[slot] = (fleet.Start(task, seed, seed in self.protocol.filmed),)
        if not starts:
            return False
        for slot, progress in self._timed("simulator", self.envs.call, "reset", starts).items():
            self.active[slot].instruction = self.active[slot].instruction or progress.frame.task
            self._see(slot, progress)
        fresh = {slot: () for slot in starts if self.active[slot].task not in self.specs}
        self.specs |= {spec.task: spec for spec in self.envs.call("spec", fresh).values()}
        return True

    def _next(self, slot: int) -> tuple[str, int] | None:
        """Returns what a free slot runs: its own task, or one that nobody runs, or nothing while others finish."""
        left = {task: seeds for task, seeds in self.waiting.items() if seeds}
        running, own = [episode.task for episode in self.active.values()], self.last_task.get(slot)
        if own not in left:
            free = [task for task in left if own is None or task not in running]
            if not free:
                return None
            own = min(free, key=lambda task: running.count(task) - len(left[task]) / len(self.order))
        self.last_task[slot] = own
        return own, left[own].pop(0)

    def _plans(self) -> dict[int, tuple[np.ndarray]]:
        """Asks the policy for all slots at once, then cuts each plan to what is carried out of it."""
        slots = sorted(self.active)
        padded = slots + slots[-1:] * (self.protocol.num_envs - len(slots))
        seeds = [(self.protocol.noise_seed, self.active[s].seed, len(self.active[s].plans)) for s in padded]
        plans = self._timed("policy", self.plan, [self._observation(slot) for slot in padded], seeds)
        self.num_plans += len(slots)
        return {slot: (self._executed(slot, actions),) for slot, actions in zip(slots, plans)}

    def _executed(self, slot: int, actions: np.ndarray) -> np.ndarray:
        spec = self.specs[self.active[slot].task]
        return np.stack([base.checked(spec, action) for action in actions[: self._room(slot)]])

    def _observation(self, slot: int) -> Observation:
        frame, episode = self.frames[slot], self.active[slot]
        cameras = self.protocol.cameras or self.specs[episode.task].cameras
        pictures = [frame.images[camera] for camera in cameras]
        return Observation(pictures, episode.instruction, frame.state, self.protocol.norm_tag)

    def _room(self, slot: int) -> int:
        """Returns how many actions may be carried out before the next plan or the end of the horizon."""
        episode = self.active[slot]
        horizon = self.protocol.horizon or self.specs[episode.task].horizon
        return min(self.protocol.executed, horizon - len(episode.actions))

    def _advance(self, plans: dict[int, tuple[np.ndarray]]) -> None:
        for slot, progress in self._timed("simulator", self.envs.call, "advance", plans).items():
            episode = self.active[slot]
            episode.actions.extend(plans[slot][0][: progress.decisions])
            episode.plans.append(progress.decisions)
            episode.success = progress.success
            self._see(slot, progress)
            if progress.success or progress.ended or self._room(slot) == 0:
                self.finished.append(self.active.pop(slot))

    def _see(self, slot: int, progress: fleet.Progress) -> None:
        self.frames[slot], episode = progress.frame, self.active[slot]
        shown = [next(iter(frame.images.values())) for frame in (*progress.film, progress.frame)]
        episode.seen.append(shown[-1])
        if episode.seed in self.protocol.filmed:
            episode.film.extend(shown)

    def _timed(self, phase: str, function: Callable, *args: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args)
        self.seconds[phase] += time.perf_counter() - begin
        return result
