"""A policy as many clients see it: one robot, its limits, their sessions, and one line of calls in front of it."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import time
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.serve import fields, guard, observe
from molmoact2_jax.serve.policy import Policy
from molmoact2_jax.serve.records import Action, DepthCache, DepthDecodeError, Options
from molmoact2_jax.serve.worker import Worker
from molmoact2_jax.text import prompt
from molmoact2_jax.text.actions import ActionDecodeError

SAMPLES = 1000  # latencies that the percentiles are taken from
_SLACK = 8  # tokens that an instruction may gain inside its prompt
_MOST_TEXT = 20_000  # characters of an instruction, before it is looked at
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an operator chose; clients cannot change it, since another choice would have to be compiled.

    Attributes:
      norm_tag: the robot.
      cameras: names in the order of the pictures.
      mode, depth, num_steps, n_action_steps: as in `Policy.predict_action`.
      max_task_tokens: longest instruction.
      most_together: calls that wait together and may be computed as one batch; a power of two.
      timeout_s: how long a client waits for its actions.
      checks: of states and actions.
    """

    norm_tag: str
    cameras: tuple[str, ...]
    mode: str = "continuous"
    depth: str = "off"
    num_steps: int | None = None
    n_action_steps: int | None = None
    max_task_tokens: int = 64
    most_together: int = 1
    timeout_s: float = 30.0
    checks: guard.Options = dataclasses.field(default_factory=guard.Options)

    def __post_init__(self) -> None:
        if self.most_together < 1 or self.most_together & (self.most_together - 1):
            raise ValueError(f"most_together: {self.most_together}, expected 1, 2, 4, 8, ...")
        if self.max_task_tokens < 1 or not self.timeout_s > 0:
            raise ValueError(
                f"max_task_tokens {self.max_task_tokens}, timeout_s {self.timeout_s}: expected more than 0."
            )
        if not 1 <= len(self.cameras) <= observe.MAX_IMAGES:
            raise ValueError(f"cameras: {len(self.cameras)}, expected 1 to {observe.MAX_IMAGES}. Name them in order.")


class Session:
    """An episode of one client: the depth cache from call to call, and actions that were not fetched yet."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()  # calls of one episode follow each other
        self.reset()

    def reset(self) -> None:
        """Ends the episode and starts another."""
        self.cache: DepthCache | None = None
        self.queue: collections.deque[np.ndarray] = collections.deque()


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the policy."""

    observation: Observation
    cache: DepthCache | None
    options: tuple[tuple[str, Any], ...]


class Service:
    """Answers requests, from any number of clients, with the chunks that `Policy.predict_action` gives."""

    def __init__(self, policy: Policy, settings: Settings):
        """Checks the settings against the checkpoint and starts the inference thread.

        Raises:
          ValueError: an unknown robot, or a choice that the checkpoint cannot serve.
        """
        self.policy, self.settings = policy, settings
        self.tag = policy.host.tag(settings.norm_tag)
        _check_cameras(settings.cameras, self.tag.cameras)
        self.options = dict(mode=settings.mode, depth=settings.depth, num_steps=settings.num_steps)
        Options.of(self.options, policy.host)
        horizon, steps = policy.host.horizon(self.tag), settings.n_action_steps
        if steps is not None and not 1 <= steps <= horizon:
            raise ValueError(f"n_action_steps: {steps}, expected 1 to {horizon}, the horizon of the tag.")
        self.limits = guard.limits(self.tag)
        self.counts, self.calls, self.late_compilations = guard.Counts(), 0, 0
        self.latencies: collections.deque[float] = collections.deque(maxlen=SAMPLES)
        self._compiled: int | None = None
        self._worker = Worker(self._compute, most_together=settings.most_together)

    @property
    def waiting(self) -> int:
        """Calls in the line."""
        return self._worker.waiting

    @property
    def style(self) -> str:
        """The prompt's word for what is predicted."""
        return "robot_action" if self.settings.depth == "off" else "robot_depth_action"

    def warm(self) -> int:
        """Compiles everything that a request can need; returns how many programs that took."""
        before, size = self.policy.compilations, 1
        tokens = self.settings.max_task_tokens + _SLACK
        while size <= self.settings.most_together:
            self.policy.warm(
                self.settings.norm_tag,
                num_images=len(self.settings.cameras),
                max_task_tokens=tokens,
                batch=size,
                **self.options,
            )
            size *= 2
        self._compiled = self.policy.compilations
        return self._compiled - before

    def rehearse(self, most_calls: int, seconds: float) -> tuple[list[float], int]:
        """Predicts from black pictures and the median state, until either limit but three times at least.

        Returns:
          Milliseconds of each call, and how many gave no actions: nothing was trained on black pictures.

        Raises:
          Exception: whatever else goes wrong, such as too little memory: no client would fare better.
        """
        taken: list[float] = []
        failed = 0
        while len(taken) < 3 or (len(taken) < most_calls and sum(taken) < 1e3 * seconds):
            call = Call(self._rehearsal(f"call {len(taken)}"), None, self._options(None, None))
            begin = time.perf_counter()
            error = self._worker.submit("rehearsal", call.options, call).exception()
            taken.append(1e3 * (time.perf_counter() - begin))
            if error is not None and not isinstance(error, (ActionDecodeError, DepthDecodeError)):
                raise error
            failed += error is not None
        return taken, failed

    def _rehearsal(self, task: str) -> Observation:
        state = None
        if self.tag.state is not None:
            middle = self.tag.state.q50 or self.tag.state.mean or (0.0,) * self.tag.state.width
            state = np.asarray(middle, np.float32)
        pictures = [np.zeros((180, 320, 3), np.uint8)] * len(self.settings.cameras)
        return Observation(pictures, task, state, self.settings.norm_tag)

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more calls, finishes those that wait, and says whether that was done in time."""
        return self._worker.close(timeout)

    async def act(self, request: fields.Request, session: Session, client: Hashable) -> dict[str, Any]:
        """Predicts what a request asks for.

        Args:
          request: one moment of the robot.
          session: its episode; a new one for a "stateless" request.
          client: whose turn it takes.

        Returns:
          actions f32[N, D] (or action f32[D] of style "single") in robot units, and what was counted and timed.

        Raises:
          ValueError: bad input, naming the field; ActionError, ActionDecodeError, DepthDecodeError: no chunk came out.
          BusyError, TimeoutError: not in time.
        """
        begin = time.perf_counter()
        counts = self._check(request)
        async with asyncio.timeout(self.settings.timeout_s), session.lock:
            if request.style == "single" and session.queue:
                answer: dict[str, Any] = {"inference_calls": 0}
            else:
                answer = await self._predict(request, session, client, counts)
            if request.style == "single":
                answer["action"] = session.queue.popleft()
        actions = answer["action" if request.style == "single" else "actions"]
        self.counts.add(counts)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        answer |= {"action_shape": list(actions.shape), "style": self.style, "guard": counts.to_json()}
        answer |= {"dt_ms": milliseconds, "latency_ms": milliseconds}
        return answer | ({"ignored": list(request.ignored)} if request.ignored else {})

    async def _predict(
        self, request: fields.Request, session: Session, client: Hashable, counts: guard.Counts
    ) -> dict[str, Any]:
        observation = Observation(request.images, request.task, request.state, self.settings.norm_tag)
        call = Call(observation, session.cache, self._options(request.n_action_steps, request.seed))
        begin = time.perf_counter()
        out = await asyncio.wrap_future(self._worker.submit(client, call.options, call))
        self.latencies.append(1e3 * (time.perf_counter() - begin))
        self.calls += 1
        sent, broken = guard.release(out.actions, self.limits, self.settings.checks.actions)
        counts.add(broken)
        session.cache = out.depth_cache
        answer = {"inference_calls": 1, "timing_ms": out.timing, **_depth(out)}
        if request.style == "single":
            session.queue.extend(sent)
            return answer
        return {"actions": sent, **answer}

    def _check(self, request: fields.Request) -> guard.Counts:
        """Refuses what the policy was not started for, before it takes anyone's turn."""
        chosen, tag = self.settings, self.tag
        if request.norm_tag not in (None, chosen.norm_tag):
            raise ValueError(f"norm_tag: {request.norm_tag!r}, expected {chosen.norm_tag!r}, which is served here.")
        steps = chosen.num_steps or self.policy.cfg.flow.num_steps
        if request.num_steps not in (None, steps):
            raise ValueError(
                f"num_steps: {request.num_steps}, expected {steps}, which was compiled. Start with another."
            )
        if request.seed is not None and request.seed < 0:
            raise ValueError(f"seed: {request.seed}, expected 0 or more.")
        guard.check_cameras(len(request.images), chosen.cameras)
        self._check_task(request.task)
        if tag.state is None:
            return guard.Counts()
        return guard.check_state(observe.check_state(request.state, tag.state), tag, chosen.checks)

    def _check_task(self, task: str) -> None:
        most = self.settings.max_task_tokens
        length = len(task) if len(task) > _MOST_TEXT else 0
        length = length or len(self.policy.host.tokenizer.encode(prompt.normalize_task(task)))
        if length > most:
            raise ValueError(f"task: {length} tokens, expected at most {most}. Shorten it, or start with more.")

    def _options(self, n_action_steps: int | None, seed: int | None) -> tuple[tuple[str, Any], ...]:
        steps = self.settings.n_action_steps if n_action_steps is None else n_action_steps
        return tuple({**self.options, "n_action_steps": steps, "seed": seed or 0}.items())

    def _compute(self, calls: Sequence[Call]) -> list[Action | ValueError]:
        """Runs in the inference thread: one batch, filled up to a size that was compiled; alone where one fails."""
        filled = [*calls, *[calls[-1]] * ((1 << (len(calls) - 1).bit_length()) - len(calls))]
        try:
            outs = self.policy.predict_actions(
                [call.observation for call in filled],
                depth_caches=[call.cache for call in filled],
                **dict(calls[0].options),
            )
        except ValueError as error:
            return [error] if len(calls) == 1 else [self._compute([call])[0] for call in calls]
        self._note_compilations()
        return list(outs[: len(calls)])

    def _note_compilations(self) -> None:
        if self._compiled is not None and self.policy.compilations > self._compiled:
            self.late_compilations += self.policy.compilations - self._compiled
            _log.warning("a program was compiled after READY, %d in all: a call stalled", self.late_compilations)
            self._compiled = self.policy.compilations


def _check_cameras(chosen: Sequence[str], listed: Sequence[str]) -> None:
    """Refuses cameras that the robot does not list, or in another order: the prompt shows them in that one."""
    rest = iter(map(fields.short, listed))
    if listed and not all(fields.short(camera) in rest for camera in chosen):
        raise ValueError(f"cameras: {list(chosen)}, expected some of {list(listed)}, in this order.")


def _depth(out: Action) -> dict[str, Any]:
    if out.depth_codes is None:
        return {}
    return {"depth_buffer_codes": out.depth_codes, "depth_changed": out.changed, "depth_passes": out.passes}
