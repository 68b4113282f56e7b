"""Curation: which frames and episodes are sound but not worth training on. The result is lines of a quarantine file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

from molmoact2_jax.data import checks, quarantine, table
from molmoact2_jax.data.source import EpisodeSource, SampleError


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is left out. Rules that are empty or 0 do nothing.

    Attributes:
      idle: a frame is idle where no channel of state or action changes by more than this part of its span.
      min_seconds: moving segments, and whole episodes, shorter than this are left out (`training.md` 4.8: 1 s).
      drop_task: regular expression; episodes whose first instruction it finds are left out.
      keep_task: regular expression; others are left out.
    """

    idle: float = 0.0
    min_seconds: float = 0.0
    drop_task: str = ""
    keep_task: str = ""

    def __post_init__(self):
        if not 0 <= self.idle < 1 or self.min_seconds < 0:
            raise ValueError(
                f"Rules: idle {self.idle}, min_seconds {self.min_seconds}, expected 0 <= idle < 1 and no negative time."
            )
        for name in ("drop_task", "keep_task"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"Rules.{name}: {getattr(self, name)!r} is no regular expression: {error}.") from error


def entries(
    source: EpisodeSource, rules: Rules, progress: Callable[[int, int], None] = table.silent
) -> Iterator[quarantine.Entry]:
    """Yields what the rules leave out, frame by frame or as whole episodes.

    Args:
      source: any dataset; frames that are quarantined already are not named again.
      rules: what to leave out.
      progress: called with (episodes seen, all).
    """
    spans = checks.scales(source).spans if rules.idle else {}
    for position in range(source.num_episodes):
        length, start = int(source.episode_lengths[position]), int(source.episode_starts[position])
        valid = source.valid[start : start + length]
        if valid.any():
            yield from _episode(source, position, rules, spans, valid)
        progress(position + 1, source.num_episodes)


def _episode(
    source: EpisodeSource, position: int, rules: Rules, spans: dict[str, np.ndarray], valid: np.ndarray
) -> Iterator[quarantine.Entry]:
    number, seconds = int(source.episode_ids[position]), len(valid) / source.fps
    reason = _unwanted(_task(source, position), rules)
    if not reason and seconds < rules.min_seconds:
        reason = f"{seconds:.2f} s, shorter than {rules.min_seconds:g} s"
    if reason:
        yield quarantine.Entry(source.name, number, None, f"filter: {reason}")
        return
    if not rules.idle:
        return
    kept = segments(moving(source, position, spans, rules.idle), round(rules.min_seconds * source.fps))
    if not kept[valid].any():
        yield quarantine.Entry(source.name, number, None, "filter: idle throughout")
        return
    for frame in np.flatnonzero(valid & ~kept).tolist():
        yield quarantine.Entry(source.name, number, frame, "filter: idle")


def _task(source: EpisodeSource, position: int) -> str:
    try:
        return source.task(position, 0)
    except SampleError:
        return ""  # damage is the doctor's business


def _unwanted(task: str, rules: Rules) -> str:
    if rules.drop_task and re.search(rules.drop_task, task):
        return f"the task {task!r} is to be dropped"
    if rules.keep_task and not re.search(rules.keep_task, task):
        return f"the task {task!r} is none to keep"
    return ""


def moving(source: EpisodeSource, position: int, spans: dict[str, np.ndarray], idle: float) -> np.ndarray:
    """Returns bool[L], true where state or action changes on the way to the next frame; the last is as the one before.

    Args:
      source: the dataset.
      position: of the episode in it.
      spans: {kind: f64[C]}, range of each channel in the dataset.
      idle: part of the span that counts as no change.
    """
    moves = np.zeros(int(source.episode_lengths[position]), bool)
    for kind, span in spans.items():
        changes = np.abs(np.diff(np.asarray(source.column(kind, position), np.float64), axis=0))
        moves[:-1] |= (changes > idle * span).any(axis=1)
    moves[-1:] = moves[-2:-1]
    return moves


def segments(moves: np.ndarray, shortest: int) -> np.ndarray:
    """Returns bool[L]: `moves` without runs of true shorter than `shortest` frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], moves, [False]]).astype(np.int8)))
    kept = np.zeros(len(moves), bool)
    for start, stop in edges.reshape(-1, 2).tolist():
        kept[start:stop] = stop - start >= shortest
    return kept
