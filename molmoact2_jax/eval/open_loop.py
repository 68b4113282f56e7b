"""Predicted against recorded actions, in the robot's units, without moving a robot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.data import cameras
from molmoact2_jax.data.norm_stats import Tag, TagStats
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.eval.rollout import Planner


@dataclasses.dataclass(frozen=True)
class Setting:
    """Which frames are compared.

    Attributes:
      episodes: positions in the source.
      frames: of each episode, spread evenly over it; None takes all.
      seeds: of the flow's noise; each frame is predicted once for each.
      batch: predictions per call; the last batch is filled up, so that one program serves.
    """

    episodes: tuple[int, ...]
    frames: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 16


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Predictions beside what was recorded. N frames, R seeds, A steps, C channels.

    Attributes:
      episode: i64[N], position in the source.
      frame: i64[N].
      task: instruction of each frame.
      predicted: f32[R, N, A, C], robot units.
      recorded: f32[N, A, C].
      valid: bool[N, A], false past the episode's end.
      names: of the channels.
    """

    episode: np.ndarray
    frame: np.ndarray
    task: tuple[str, ...]
    predicted: np.ndarray
    recorded: np.ndarray
    valid: np.ndarray
    names: tuple[str, ...]

    @property
    def error(self) -> np.ndarray:
        """Absolute error f32[R, N, A, C], NaN past the end of an episode."""
        return np.where(self.valid[:, :, None], np.abs(self.predicted - self.recorded), np.nan)


def held_out(source: EpisodeSource, count: int) -> tuple[int, ...]:
    """Returns the last `count` episodes that have frames.

    Raises:
      ValueError: there are not so many.
    """
    whole = np.flatnonzero(source.episode_lengths > 0)
    if not 1 <= count <= len(whole):
        raise ValueError(f"{source.name}: {count} held-out episodes, expected 1 to {len(whole)}. Ask for fewer.")
    return tuple(int(i) for i in whole[-count:])


def kept_apart(source: EpisodeSource, every: int) -> tuple[int, ...]:
    """Returns the episodes that training with `data.held_out` = `every` does not see, of the same dataset.

    Raises:
      ValueError: there are none.
    """
    chosen = [
        i for i in range(every - 1, len(source.episode_ids), every) if every > 0 and source.episode_lengths[i] > 0
    ]
    if not chosen:
        raise ValueError(
            f"{source.name}: every {every}th of {len(source.episode_ids)} episodes, expected at least one. "
            "Give data.held_out of the run."
        )
    return tuple(chosen)


def compare(
    plan: Planner,
    source: EpisodeSource,
    tag: Tag,
    name: str,
    setting: Setting,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Predicts a chunk for each frame and noise, beside what the robot did.

    Args:
      plan: the policy; it returns whole chunks.
      source: episodes that it did not see in training.
      tag: the robot as the checkpoint knows it.
      name: of the tag.
      setting: which frames.
      progress: called with (predictions made, all).

    Raises:
      ValueError: a source whose channels or cameras are not the tag's.
    """
    _check_widths(source, tag, name)
    keys = cameras.resolve(tag.cameras, source) if tag.cameras else source.cameras
    where = [(e, f) for e in setting.episodes for f in _frames(int(source.episode_lengths[e]), setting.frames)]
    jobs = [(seed, e, f) for seed in setting.seeds for e, f in where]
    plans: list[np.ndarray] = []
    for start in range(0, len(jobs), setting.batch):
        part = jobs[start : start + setting.batch]
        padded = part + part[-1:] * (setting.batch - len(part))
        seen = [_observation(source, keys, name, e, f) for _, e, f in padded]
        answers = plan(seen, [(seed, int(source.episode_ids[e]), f) for seed, e, f in padded])
        plans += list(answers[: len(part)])
        if progress is not None:
            progress(len(plans), len(jobs))
    predicted = np.stack(plans).reshape(len(setting.seeds), len(where), *plans[0].shape)
    chunks = [source.chunk(e, f, predicted.shape[2]) for e, f in where]
    episode, frame = np.array(where, np.int64).T
    return Comparison(
        episode=episode,
        frame=frame,
        task=tuple(source.task(e, f) for e, f in where),
        predicted=predicted,
        recorded=np.stack([chunk.actions for chunk in chunks]),
        valid=np.stack([chunk.valid for chunk in chunks]),
        names=source.action_names,
    )


def _frames(length: int, count: int | None) -> Sequence[int]:
    if count is None or count >= length:
        return range(length)
    return [int(i) for i in np.linspace(0, length - 1, count).round()]


def _observation(source: EpisodeSource, keys: Sequence[str], name: str, episode: int, frame: int) -> Observation:
    pictures = source.frames(episode, [frame], keys)
    images = [pictures[key][0] for key in keys]
    return Observation(images, source.task(episode, frame), source.state(episode, frame), name)


def _check_widths(source: EpisodeSource, tag: Tag, name: str) -> None:
    for kind, stats, names in (("action", tag.action, source.action_names), ("state", tag.state, source.state_names)):
        if stats is not None and stats.width != len(names):
            raise ValueError(
                f"{source.name}: {len(names)} {kind} channels ({', '.join(names)}), expected {stats.width} of "
                f"norm_tag {name!r}. This dataset is of another robot; choose its tag."
            )


def summary(found: Comparison, stats: TagStats | None) -> dict[str, Any]:
    """Returns what the result file says: mean absolute errors in robot units, by channel, step, seed and task.

    `normalised` divides by half of the channel's 1st to 99th percentile where the checkpoint knows them, so that it
    compares robots and is what the training loss sees. `constant` is the error of always predicting the mean recorded
    action: a policy that is no better has learned nothing. `spread` is the standard deviation of the predictions over
    the seeds: how sure the policy is.
    """
    error = found.error
    channels, steps = mean(error, (0, 1, 2)), mean(error, (0, 1))
    known = np.where(found.valid[:, :, None], found.recorded, np.nan)
    constant = mean(np.abs(known - mean(known, (0, 1))), (0, 1))
    spread = mean(np.where(found.valid[:, :, None], found.predicted.std(axis=0), np.nan), (0, 1))
    scale = _half_ranges(stats, len(found.names))
    tasks = sorted(set(found.task))
    of = {task: np.array([each == task for each in found.task]) for task in tasks}
    return dict(
        kind="open_loop",
        frames=len(found.frame),
        episodes=len(np.unique(found.episode)),
        horizon=int(found.valid.shape[1]),
        channels={
            name: dict(error=_number(channels[c]), constant=_number(constant[c]), spread=_number(spread[c]))
            for c, name in enumerate(found.names)
        },
        steps={name: [_number(v) for v in steps[:, c]] for c, name in enumerate(found.names)},
        normalised=_number(np.mean(channels / scale)),
        normalised_constant=_number(np.mean(constant / scale)),
        normalised_by_seed=[_number(v) for v in np.mean(mean(error, (1, 2)) / scale, axis=-1)],
        tasks={task: _number(np.mean(mean(error[:, of[task]], (0, 1, 2)) / scale)) for task in tasks},
    )


def mean(values: np.ndarray, axis: tuple[int, ...] | int) -> np.ndarray:
    """Returns the mean over what is not NaN, NaN where nothing is."""
    return np.ma.masked_invalid(values).mean(axis=axis).filled(np.nan)


def _half_ranges(stats: TagStats | None, width: int) -> np.ndarray:
    if stats is None or stats.q01 is None or stats.q99 is None:
        return np.ones(width)
    half = np.subtract(stats.q99, stats.q01) / 2
    return np.where(half > 1e-6, half, 1.0)  # a channel that never moves passes through raw


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
