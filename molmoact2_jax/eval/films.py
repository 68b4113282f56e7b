"""Pictures of rollouts: every picture of the episodes that were filmed, and a few of the first of each outcome."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from molmoact2_jax.eval.rollout import Episode, Round

STRIP = 8  # pictures of a strip
STRIP_SIDE = 128  # pixels; smaller pictures are enlarged by a whole factor


def save_films(
    episodes: Sequence[Episode], directory: pathlib.Path, fps: float, enlarge: int = 3
) -> list[pathlib.Path]:
    """Writes each filmed episode as an animated WebP. Returns the files.

    Args:
      episodes: some of them filmed.
      directory: for `TASK-SEED.webp`.
      fps: pictures per second.
      enlarge: each pixel becomes a square of this side.
    """
    written = []
    for episode in episodes:
        if episode.film:
            directory.mkdir(parents=True, exist_ok=True)
            written.append(directory / f"{episode.task}-{episode.seed}.webp")
            first, *rest = [Image.fromarray(_enlarged(picture, enlarge)) for picture in episode.film]
            first.save(written[-1], save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=80)
    return written


def strip(episode: Episode) -> np.ndarray:
    """Returns u8[H, W, 3]: what the policy saw from the first plan to the end, up to `STRIP` pictures side by side."""
    chosen = np.unique(np.linspace(0, len(episode.seen) - 1, STRIP).round().astype(int))
    height = episode.seen[0].shape[0]
    gap = np.full((height, 1, 3), 255, np.uint8)
    parts = [part for i in chosen for part in (episode.seen[i], gap)][:-1]
    return _enlarged(np.concatenate(parts, axis=1), max(1, STRIP_SIDE // height))


def save_strips(done: Round, record: dict[str, Any], before: Sequence[Mapping[str, Any]], out: pathlib.Path) -> None:
    """Writes the strip of the first success and the first failure of each task, and notes the file in the record.

    Args:
      done: a round.
      record: of it (`scorecard.record`); its episodes get "strip", the file's name in `out`.
      before: records of the rounds before it.
      out: directory of the rollout.
    """
    known = {(each["task"], each["success"]) for earlier in before for each in earlier["episodes"]}
    for episode, facts in zip(done.episodes, record["episodes"], strict=True):
        if (episode.task, episode.success) not in known:
            known.add((episode.task, episode.success))
            facts["strip"] = f"strip-{episode.task}-{episode.seed}.webp"
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(strip(episode)).save(out / facts["strip"], quality=85)


def _enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
