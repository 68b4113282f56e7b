"""A point that moves over a coloured table: an adapter in NumPy alone, to learn from and to try programs with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import numpy as np

from molmoact2_jax.envs.base import Environment, Expert, Frame, Outcome, Spec, checked

SIDE = 32  # pixels
SPEED = 0.1  # of the table's side, per decision
REACH = 0.06  # within this distance the goal is reached
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
TASKS = {f"go-{colour}": f"Go to the {colour} square" for colour in COLOURS}


class Toy(Environment):
    """Two squares lie on a table, and only the instruction says which of them to go to.

    The state is the position of the point, in parts of the table's side; an action is its velocity.
    """

    def __init__(self, task: str):
        self._position = np.zeros(2, np.float32)
        self._squares = dict.fromkeys(COLOURS, np.zeros(2, np.float32))
        self.spec = _spec(task)

    @classmethod
    def instructions(cls) -> Mapping[str, str]:
        return TASKS

    def reset(self, seed: int) -> Frame:
        rng = np.random.default_rng(seed)
        self._position = rng.uniform(0.4, 0.6, 2).astype(np.float32)
        sides = rng.permutation([0.2, 0.8])
        self._squares = {c: np.array([side, rng.uniform(0.1, 0.9)], np.float32) for c, side in zip(COLOURS, sides)}
        return self.observe()

    def step(self, action: np.ndarray) -> Outcome:
        executed = checked(self.spec, action)
        self._position = np.clip(self._position + SPEED * executed, 0, 1).astype(np.float32)
        return Outcome(success=bool(np.linalg.norm(self._position - self._goal) < REACH), ended=False)

    def observe(self) -> Frame:
        picture = np.full((SIDE, SIDE, 3), 230, np.uint8)
        for colour, place in self._squares.items():
            _fill(picture, place, 3, COLOURS[colour])
        _fill(picture, self._position, 1, (20, 20, 20))
        return Frame({"top": picture}, self._position.copy(), self.spec.instruction)

    def expert(self) -> Expert:
        return lambda: checked(self.spec, (self._goal - self._position) / SPEED)

    def close(self) -> None:
        """Holds nothing that must be freed."""

    @property
    def _goal(self) -> np.ndarray:
        return self._squares[self.spec.task.removeprefix("go-")]


def _fill(picture: np.ndarray, place: np.ndarray, radius: int, colour: tuple[int, int, int]) -> None:
    column, row = (round(float(value) * (SIDE - 1)) for value in place)
    picture[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = colour


def _spec(task: str) -> Spec:
    return Spec(
        env="toy",
        task=task,
        instruction=TASKS[task],
        setup="point on a table",
        control="velocity",
        cameras=("top",),
        state_names=("x", "y"),
        state_units=("table side", "table side"),
        action_names=("x", "y"),
        action_units=("tenths of the table side per decision",) * 2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        fps=10.0,
        horizon=30,
        settings=dict(side=SIDE, speed=SPEED, reach=REACH),
        versions={"numpy": importlib.metadata.version("numpy")},
    )
