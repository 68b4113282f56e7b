"""A loaded checkpoint that turns observations into actions; one compiled program per shape of call."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.checkpoint import hf, storage
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import normalize
from molmoact2_jax.models import decode
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import answers, cache_dir, drafts, observe, program, session
from molmoact2_jax.serve.records import Action, DepthCache, Options, Prepared
from molmoact2_jax.serve.runner import Runner
from molmoact2_jax.text import prompt

CPU_WIDTHS = (16, 48)  # and the whole span
_log = logging.getLogger(__name__)


class Policy:
    """Predicts actions, and answers in words. Make one with `from_pretrained`."""

    def __init__(self, host: observe.Host, params: Params, *, unroll: bool | None = None, widths: tuple[int, ...] = ()):
        """Takes parameters over.

        Args:
          host: the side files of the checkpoint.
          params: parameters, in the dtype to compute in.
          unroll: compiles layers one by one instead of as a loop, which saves copies of weights and launches (None:
            except on a TPU).
          widths: positions that a pass of adaptive depth may have, see `decode.depth_codes` (empty: several on a CPU).
        """
        backend = jax.default_backend()
        self.host, self.cfg = host, host.cfg
        self._runner = Runner(self.cfg, params, unroll=backend != "tpu" if unroll is None else unroll)
        self._widths = widths or pass_widths(self.cfg, backend)
        self._warned: set[str] = set()

    @classmethod
    def from_pretrained(cls, directory: str | pathlib.Path, dtype: Any = "bfloat16", **options: Any) -> Policy:
        """Loads a checkpoint.

        Args:
          directory: configuration, tensors, tokenizer, statistics in the released format; or a run of ours,
            which may be at an address such as gs://bucket/run.
          dtype: of the parameters and the computation, "bfloat16" or "float32".
          **options: see `Policy`.

        Raises:
          FileNotFoundError, ValueError: see `hf.load`; nothing is half-loaded.
        """
        cache_dir.enable()
        if (storage.path(directory) / "model.json").is_file():
            from molmoact2_jax.checkpoint import runs  # needs the train extra

            cfg, params = runs.load(directory, jnp.dtype(dtype))
            return cls(observe.Host.load(runs.side_directory(directory), cfg), params, **options)
        directory = storage.local(directory)
        cfg, params = hf.load(directory, jnp.dtype(dtype))
        return cls(observe.Host.load(directory, cfg), params, **options)

    @property
    def params(self) -> Params:
        """The parameters, as the programs take them."""
        return self._runner.params

    def replace(self, params: Params) -> None:
        """Takes other weights of the same shapes and dtypes, as training produces them; nothing is compiled anew."""
        self._runner.replace(params)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._runner.compilations

    def predict_action(
        self,
        images: Sequence[Any],
        task: str,
        state: np.ndarray | None,
        norm_tag: str,
        *,
        depth_cache: DepthCache | None = None,
        noise: np.ndarray | None = None,
        **options: Any,
    ) -> Action:
        """Predicts one chunk.

        Args:
          images: pictures in the order of the tag's cameras (see `data.images.coerce`).
          task: instruction in words.
          state: f32[D] in the robot's units.
          norm_tag: the robot.
          depth_cache: what the previous call returned; None starts an episode.
          noise: f32[horizon, 32], overrides the seed.
          **options: mode "continuous" or "discrete"; depth "off", "full" or "adaptive"; num_steps; n_action_steps;
            seed; strict (False: a malformed action stream gives the released zero chunk); strict_cameras.

        Raises:
          ValueError: bad input, naming the field.
          ActionDecodeError, DepthDecodeError: the model's tokens are not an action, or its depth span does not end.
        """
        observation = Observation(images, task, state, norm_tag)
        return self.predict_actions([observation], depth_caches=[depth_cache], noise=[noise], **options)[0]

    def episode(self, norm_tag: str, task: str | None = None, **options: Any) -> session.Episode:
        """Starts an episode, which keeps the depth cache between its calls: `with policy.episode(tag) as episode`.

        Args:
          norm_tag: the robot.
          task: instruction in words, or None to give it with the first call.
          **options: of all calls, see `predict_action`; not depth_cache.

        Raises:
          ValueError: an unknown robot or option, or one that the checkpoint cannot serve.
        """
        self.host.tag(norm_tag)
        Options.of(options, self.host)
        return session.Episode(self, norm_tag, task, options)

    def predict_actions(
        self,
        observations: Sequence[Observation],
        *,
        depth_caches: Sequence[DepthCache | None] | None = None,
        noise: Sequence[np.ndarray | None] | None = None,
        **options: Any,
    ) -> list[Action]:
        """Predicts chunks of several robots together; each result equals that of a call of its own.

        Robots of different horizon or number of cameras run as separate batches. Other arguments: `predict_action`.
        """
        chosen = Options.of(options, self.host)
        caches = _one_each("depth_caches", depth_caches, len(observations))
        noises = _one_each("noise", noise, len(observations))
        begin = time.perf_counter()
        prepared = [self._prepare(o, c, n, chosen) for o, c, n in zip(observations, caches, noises)]
        before = 1e3 * (time.perf_counter() - begin)
        groups: dict[tuple, list[int]] = {}
        for i, one in enumerate(prepared):
            groups.setdefault((self.host.horizon(one.tag), len(one.row.crops)), []).append(i)
        results: dict[int, Action] = {}
        for indices in groups.values():
            results.update(zip(indices, self._run([prepared[i] for i in indices], chosen, before)))
        return [results[i] for i in range(len(observations))]

    def generate(
        self,
        text_or_messages: str | Sequence[prompt.Message],
        images: Sequence[Any] = (),
        video: tuple[np.ndarray, float] | None = None,
        max_tokens: int = 128,
    ) -> str:
        """Answers a question about pictures or a video, greedily.

        Args:
          text_or_messages: the question, or turns that end with the user's.
          images: pictures, shown before the first turn.
          video: frames u8[T, H, W, 3] and their rate per second, of which at most 8 are shown; not with images.
          max_tokens: where the answer is cut.

        Returns:
          The answer without its end token.
        """
        messages = text_or_messages
        if isinstance(messages, str):
            messages = [prompt.Message("user", messages)]
        row = self.host.question(messages, images, video)
        inputs = observe.pad([row], self.cfg.tokens.pad, observe.bucket(len(row.tokens)))
        outcome = self._runner.call(program.Spec("text", "off", max_tokens=max_tokens), program.Call(inputs), 0)
        return answers.text(self.host, outcome)

    def warm(
        self,
        norm_tag: str,
        *,
        num_images: int | None = None,
        max_task_tokens: int = 64,
        batch: int = 1,
        **options: Any,
    ) -> int:
        """Compiles the programs that calls of this kind need, for tasks of up to `max_task_tokens` tokens.

        Returns:
          How many programs were compiled.
        """
        chosen, before = Options.of(options, self.host), self.compilations
        tag = self.host.tag(norm_tag)
        pictures = [np.zeros((32, 32, 3), np.uint8)] * (num_images or len(tag.cameras) or 1)
        state = None if tag.state is None else np.zeros(tag.state.width, np.float32)
        one = self._prepare(Observation(pictures, "", state, norm_tag), None, None, chosen)
        shortest = len(one.row.tokens)
        for length in sorted({observe.bucket(n) for n in range(shortest, shortest + max_task_tokens + 1)}):
            spec, call, num_steps = self._arguments([one] * batch, chosen, length)
            self._runner.compile(spec, call, num_steps)
            if chosen.depth == "adaptive":  # no frame of an episode may wait for the program of a late end
                self._runner.compile(self._closing(spec), call, num_steps)
        return self.compilations - before

    def _prepare(
        self, observation: Observation, cache: DepthCache | None, noise: np.ndarray | None, chosen: Options
    ) -> Prepared:
        tag = self.host.tag(observation.norm_tag)
        horizon, steps = self.host.horizon(tag), chosen.n_action_steps
        if steps is not None and not 1 <= steps <= horizon:
            raise ValueError(f"n_action_steps: {steps}, expected 1 to {horizon}, the horizon of the tag.")
        pictures = observe.pictures(observation, tag, strict_cameras=chosen.strict_cameras)
        self._note_cameras(observation.norm_tag, len(pictures), tag.cameras)
        style = "robot_action" if chosen.depth == "off" else "robot_depth_action"
        row = self.host.row(observation, style, pictures)
        draft, changed = drafts.make(self.cfg, chosen.depth, cache, pictures[0])
        noise = _noise(noise, (horizon, self.cfg.action_dim), chosen.seed)
        return Prepared(row, pictures[0], tag, noise, draft, changed)

    def _note_cameras(self, name: str, given: int, listed: tuple[str, ...]) -> None:
        if given < len(listed) and name not in self._warned:
            self._warned.add(name)
            _log.warning("images: %d, tag %r lists %s; the prompt shows those given", given, name, ", ".join(listed))

    def _run(self, group: list[Prepared], chosen: Options, before: float) -> list[Action]:
        begin = time.perf_counter()
        length = observe.bucket(max(len(one.row.tokens) for one in group))
        spec, call, num_steps = self._arguments(group, chosen, length)
        outcome = self._runner.call(spec, call, num_steps)
        if outcome.codes is not None and not outcome.codes.ended.all():
            outcome = self._close(spec, call, num_steps, outcome.codes)
        end = time.perf_counter()
        results = [answers.action(self.host, one, outcome, i, chosen) for i, one in enumerate(group)]
        timing = dict(preprocess=before, model=1e3 * (end - begin), post=1e3 * (time.perf_counter() - end))
        return [dataclasses.replace(result, timing=dict(timing)) for result in results]

    def _close(self, spec: program.Spec, call: program.Call, num_steps: int, found: decode.Depth) -> program.Outcome:
        """Lets the model decode on behind its codes where it does not end the span at once, as released."""
        rest = self._runner.call(self._closing(spec), call._replace(draft=found.codes), num_steps)
        return rest._replace(codes=found)

    def _closing(self, spec: program.Spec) -> program.Spec:
        return dataclasses.replace(spec, depth="close", max_depth_tokens=max(8, self.cfg.max_horizon))

    def _arguments(self, group: list[Prepared], chosen: Options, length: int) -> tuple[program.Spec, program.Call, int]:
        cfg, tags = self.cfg, [one.tag for one in group]
        horizon = self.host.horizon(tags[0])
        spec = program.Spec(
            mode=chosen.mode,
            depth=chosen.depth,
            horizon=horizon,
            max_tokens=16 * horizon if chosen.mode == "discrete" else 0,
            max_depth_tokens=max(cfg.num_depth_codes + 8, 16 * cfg.max_horizon) if chosen.depth == "full" else 0,
            widths=self._widths if chosen.depth == "adaptive" else (),
        )
        call = program.Call(observe.pad([one.row for one in group], cfg.tokens.pad, length))
        if chosen.mode == "continuous":
            call = call._replace(robot=self._robots(tags), noise=np.stack([one.noise for one in group]))
        if chosen.depth == "adaptive":
            draft, changed = (np.stack([getattr(one, name) for one in group]) for name in ("draft", "changed"))
            call = call._replace(draft=draft, changed=changed)
        return spec, call, chosen.num_steps or cfg.flow.num_steps

    def _robots(self, tags: list) -> program.Robot:
        undo = [normalize.inverse(tag, self.host.robots.mode, self.cfg.action_dim) for tag in tags]
        stacked = normalize.Inverse(*(np.stack(arrays) for arrays in zip(*undo)))
        widths = np.array([[self.host.channels(tag)] for tag in tags])
        return program.Robot(stacked, np.arange(self.cfg.action_dim) < widths)


def pass_widths(cfg: ModelConfig, backend: str) -> tuple[int, ...]:
    """Returns how many positions a pass of adaptive depth may have on a kind of device (`decode.depth_codes`)."""
    span = cfg.num_depth_codes + 2
    return (*(w for w in CPU_WIDTHS if w < span), span) if backend == "cpu" else (span,)


def _one_each(name: str, values: Sequence[Any] | None, count: int) -> Sequence[Any]:
    given = [None] * count if values is None else values
    if len(given) != count:
        raise ValueError(
            f"{name}: {len(given)}, expected {count}, one for each observation (None where there is none)."
        )
    return given


def _noise(noise: np.ndarray | None, shape: tuple[int, int], seed: int) -> np.ndarray:
    if noise is None:
        return np.random.default_rng(seed).standard_normal(shape, np.float32)
    noise = np.asarray(noise, np.float32)
    if noise.shape != shape or not np.isfinite(noise).all():
        raise ValueError(f"noise: float32{list(noise.shape)}, expected finite float32{list(shape)}.")
    return noise
