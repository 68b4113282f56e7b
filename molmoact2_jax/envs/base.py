"""What a simulator is to the rest of the library. `registry.open_environment` starts one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Expert = Callable[[], np.ndarray]  # () -> f32[C]: what the demonstrator would do at this moment


@dataclasses.dataclass(frozen=True)
class Spec:
    """One task of a simulator, in the words that datasets, prompts and result files use.

    Attributes:
      env: name of the simulator.
      task: name of the task.
      instruction: what to do, in words.
      setup: the robot, in words, for the prompt.
      control: the kind of action, in words, for the prompt.
      cameras: names, in the order in which a policy gets the pictures.
      state_names: one word per channel of the state.
      state_units: unit of each of them.
      action_names: one word per channel of an action.
      action_units: unit, or what the extremes mean, of each of them.
      action_low: least value of each channel.
      action_high: greatest value of each channel.
      fps: decisions per second of simulated time.
      horizon: decisions after which an episode has failed.
      settings: everything else that changes pictures, physics or success; JSON types.
      versions: packages by name, and what draws the pictures.
    """

    env: str
    task: str
    instruction: str
    setup: str
    control: str
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    fps: float
    horizon: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest action, f32[C] each."""
        return np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)


@dataclasses.dataclass(frozen=True)
class Frame:
    """One moment as a robot sees it.

    Attributes:
      images: u8[H, W, 3] by camera, upright, RGB.
      state: f32[D], in the units of the spec.
      task: instruction in words.
      depth: f32[H, W], metres in front of the first camera, of a simulator that was asked for them.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    task: str
    depth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one decision led to: `success` by the simulator's own test, `ended` when it can go no further."""

    success: bool
    ended: bool


class Environment(abc.ABC):
    """One task of a simulator. Pictures are drawn only by `reset` and `observe`, since that is most of the cost.

    The same seed and the same actions give the same episode to the bit, whatever the instance did before.

    Attributes:
      spec: what it is.
    """

    spec: Spec

    @classmethod
    @abc.abstractmethod
    def instructions(cls) -> Mapping[str, str]:
        """Returns the instruction of every task, without starting the simulator."""

    @abc.abstractmethod
    def reset(self, seed: int) -> Frame:
        """Starts the episode of a seed: it decides where every object is."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> Outcome:
        """Carries out one decision.

        Args:
          action: f32[C]; values outside the spec's bounds are clipped (`checked`).

        Raises:
          ValueError: another shape, or a value that is not finite.
        """

    @abc.abstractmethod
    def observe(self) -> Frame:
        """Draws the pictures of this moment."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees the simulator and its renderer."""

    def expert(self) -> Expert:
        """Returns a scripted demonstrator for the episode that `reset` just started.

        Raises:
          ValueError: this simulator has none.
        """
        raise ValueError(
            f"{self.spec.env}: no scripted expert for {self.spec.task!r}, expected a simulator that brings one, such "
            "as metaworld. Use recorded demonstrations."
        )


def checked(spec: Spec, action: np.ndarray) -> np.ndarray:
    """Returns f32[C], the action that is carried out: inside the bounds of the spec.

    Raises:
      ValueError: another shape, or a value that is not finite; names the channel.
    """
    values = np.asarray(action, np.float32)
    if values.shape != (len(spec.action_names),):
        raise ValueError(
            f"{spec.env}.step: action of shape {values.shape}, expected ({len(spec.action_names)},) for "
            f"{', '.join(spec.action_names)}. The checkpoint's tag is of another robot."
        )
    if not np.isfinite(values).all():
        channel = spec.action_names[int(np.argmin(np.isfinite(values)))]
        raise ValueError(f"{spec.env}.step: channel {channel} of the action is {values}, expected finite values.")
    return np.clip(values, *spec.bounds)
