"""An episode of one robot: keeps the depth cache from call to call, and drops it at the end."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from molmoact2_jax.serve.records import Action, DepthCache

if TYPE_CHECKING:
    from molmoact2_jax.serve.policy import Policy


class Episode:
    """Calls of one episode, in order. Make one with `Policy.episode`, as a context; it cannot be entered again."""

    def __init__(self, policy: Policy, norm_tag: str, task: str | None, options: dict[str, Any]):
        """Starts without a cache; `options` are those of `Policy.predict_action`, alike in all calls."""
        self._policy, self._norm_tag, self._task, self._options = policy, norm_tag, task, options
        self._cache: DepthCache | None = None
        self._ended = False

    def __enter__(self) -> Episode:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.end()

    def act(self, images: Sequence[Any], state: np.ndarray | None, task: str | None = None, **options: Any) -> Action:
        """Predicts the next chunk, with the depth of the call before as its draft.

        Args:
          images: see `Policy.predict_action`.
          state: f32[D] in the robot's units.
          task: instruction from now on (None: as before).
          **options: for this call alone, such as noise or seed.

        Raises:
          ValueError: bad input, no task yet, or an episode that has ended. The cache is then as before the call.
        """
        self._check()
        if "depth_cache" in options:
            raise ValueError("episode: depth_cache was given, expected none: the episode keeps it. Leave it out.")
        told = self._task if task is None else task
        if told is None:
            raise ValueError("task: None, expected an instruction. Pass it to `episode` or to the first `act`.")
        chosen = {**self._options, **options}
        out = self._policy.predict_action(images, told, state, self._norm_tag, depth_cache=self._cache, **chosen)
        self._task, self._cache = told, out.depth_cache
        return out

    def end(self) -> None:
        """Drops the cache; later calls are refused."""
        self._cache, self._ended = None, True

    def _check(self) -> None:
        if self._ended:
            raise ValueError("episode: has ended, expected a running one. Start another with `Policy.episode`.")
