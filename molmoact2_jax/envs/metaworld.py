"""MetaWorld (Yu et al. 2019): a Sawyer arm and fifty tasks, each with a scripted expert, at 20 decisions a second."""

# ruff: noqa: E402 (MuJoCo reads how to draw when it is imported, so that is chosen first)
from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from molmoact2_jax.envs import metaworld_tasks, rendering
from molmoact2_jax.envs.base import Environment, Expert, Frame, Outcome, Spec, checked

mujoco = rendering.load()

import metaworld
import metaworld.policies

HOLD = 4  # simulator steps of 12.5 ms for which a decision is held
HORIZON = 60  # decisions; the expert needs 16 to 26 for the tasks of the quickstart
CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)  # m; nearer than the simulator's own, as others who train on pictures place it
SIDE = 96  # pixels of the square that is drawn
WINDOW = (4, 68, 32, 96)  # rows and columns that are kept: the workspace


class MetaWorld(Environment):
    """One MetaWorld task. A seed draws the positions of object and goal.

    The picture is drawn without shadows, reflections and multisampling, which is ten times cheaper on a CPU, turned by
    180 degrees, since that camera hangs upside down, and cropped to the workspace. The state is the position of the
    hand and the opening of the gripper. An action moves the hand's target by up to 1 cm in each of the held steps; it
    ends with the effort of the gripper.
    """

    def __init__(
        self,
        task: str,
        *,
        side: int = SIDE,
        window: tuple[int, int, int, int] | None = WINDOW,
        depth: bool = False,
    ):
        """Starts a task.

        Args:
          task: a key of `instructions`.
          side: pixels of the square that is drawn.
          window: first and end row, first and end column that are kept of it; None keeps all.
          depth: measures depth beside each picture.
        """
        self._window, self._depth = window or (0, side, 0, side), depth
        self._env = _simulator(f"{task}-v3")
        self._renderer = _renderer(self._env.model, side)
        self._observed = np.zeros(39)
        self.spec = _spec(task, side, self._window)

    @classmethod
    def instructions(cls) -> Mapping[str, str]:
        return metaworld_tasks.INSTRUCTIONS

    def reset(self, seed: int) -> Frame:
        self._env.seed(int(seed))
        self._observed, _ = self._env.reset()
        return self.observe()

    def step(self, action: np.ndarray) -> Outcome:
        executed, success = checked(self.spec, action), False
        for _ in range(HOLD):
            self._observed, _, _, _, report = self._env.step(executed)
            success = success or bool(report["success"])
        steps_left = self._env.max_path_length - self._env.curr_path_length
        return Outcome(success, ended=steps_left < HOLD)

    def observe(self) -> Frame:
        self._renderer.update_scene(self._env.data, camera=CAMERA)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        state = self._observed[:4].astype(np.float32)
        return Frame({CAMERA: self._drawn()}, state, self.spec.instruction, self._measured() if self._depth else None)

    def _measured(self) -> np.ndarray:
        self._renderer.enable_depth_rendering()
        try:
            return self._drawn()
        finally:
            self._renderer.disable_depth_rendering()

    def _drawn(self) -> np.ndarray:
        top, bottom, left, right = self._window
        return np.ascontiguousarray(self._renderer.render()[::-1, ::-1][top:bottom, left:right])

    def expert(self) -> Expert:
        policies: Any = metaworld.policies.ENV_POLICY_MAP
        policy = policies[f"{self.spec.task}-v3"]()

        def act() -> np.ndarray:
            with warnings.catch_warnings():  # it warns of every action that is going to be clipped
                warnings.simplefilter("ignore")
                return checked(self.spec, policy.get_action(self._observed))

        return act

    def close(self) -> None:
        self._renderer.close()
        self._env.close()


def _simulator(name: str) -> Any:
    """Starts the simulator so that each reset draws new positions from the seed, and not a fixed one."""
    suite = metaworld.MT1(name, seed=0)
    env = suite.train_classes[name]()
    env.set_task(suite.train_tasks[0])
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.model.cam(CAMERA).pos[:] = CAMERA_POSITION
    return env


def _renderer(model: Any, side: int) -> Any:
    model.vis.quality.offsamples = 0
    try:
        return mujoco.Renderer(model, side, side)
    except Exception as error:  # each backend raises classes of its own
        raise OSError(f"rendering: {error}, with {rendering.state()}. {rendering.HINT}") from error


def _spec(task: str, side: int, window: tuple[int, int, int, int]) -> Spec:
    return Spec(
        env="metaworld",
        task=task,
        instruction=metaworld_tasks.INSTRUCTIONS[task],
        setup="single sawyer robotic arm in metaworld",
        control="delta end-effector position",
        cameras=(CAMERA,),
        state_names=("hand_x", "hand_y", "hand_z", "gripper"),
        state_units=("m", "m", "m", "0 closed to 1 open"),
        action_names=("hand_x", "hand_y", "hand_z", "gripper"),
        action_units=("cm per 12.5 ms step", "cm per 12.5 ms step", "cm per 12.5 ms step", "-1 opens, 1 closes"),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        fps=1 / (HOLD * 0.0125),
        horizon=HORIZON,
        settings=dict(
            hold=HOLD,
            camera_position=list(CAMERA_POSITION),
            turned_degrees=180,
            side=side,
            window=list(window),
            multisampling=0,
            shadows=False,
            reflections=False,
        ),
        versions={name: importlib.metadata.version(name) for name in ("metaworld", "mujoco")}
        | {"renderer": rendering.state()},
    )
