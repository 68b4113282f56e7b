"""A dataset on one page: what its cameras see, how its channels are distributed, what its prompts say."""

from __future__ import annotations

import dataclasses
import html
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from molmoact2_jax.data import norm_stats, normalize, pictures, stats
from molmoact2_jax.data.source import EpisodeSource, SampleError
from molmoact2_jax.text import prompt

TILE = 160  # height of a picture in pixels
BINS = 60
_COLUMNS = 4
_DAMAGED = (200, 40, 40)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A frame as the model meets it.

    Attributes:
      place: episode number and frame in words.
      instruction: as stored.
      text: the question to the model with state tokens, or why the frame cannot be used.
      chunk: f32[A, C], normalised actions that follow; empty where it cannot be used.
    """

    place: str
    instruction: str
    text: str
    chunk: np.ndarray


def spread(source: EpisodeSource, count: int) -> list[int]:
    """Returns the positions of up to `count` episodes with frames, spread over the dataset."""
    filled = np.flatnonzero(source.episode_lengths)
    chosen = np.linspace(0, max(len(filled) - 1, 0), min(count, len(filled))).astype(int)
    return [int(filled[i]) for i in chosen]


def contact_sheet(source: EpisodeSource, episodes: Sequence[int], moments: int = 4) -> np.ndarray:
    """Draws every camera (rows) at moments from the first to the last frame (columns) of some episodes.

    Pictures that cannot be decoded become red tiles.

    Returns:
      u8[H, W, 3], RGB.
    """
    strips = []
    for position in episodes:
        frames = np.linspace(0, int(source.episode_lengths[position]) - 1, moments).astype(int).tolist()
        for camera in source.cameras_of(position):
            tiles = [_tile(source, position, frame, camera) for frame in frames]
            title = f"episode {source.episode_ids[position]}  {camera}"
            strips.append(np.concatenate([_label(title, sum(t.shape[1] for t in tiles)), np.hstack(tiles)]))
    width = max((strip.shape[1] for strip in strips), default=1)
    padded = [np.pad(strip, ((0, 4), (0, width - strip.shape[1]), (0, 0))) for strip in strips]
    return np.concatenate(padded) if padded else np.zeros((1, 1, 3), np.uint8)


def _tile(source: EpisodeSource, position: int, frame: int, camera: str) -> np.ndarray:
    try:
        picture = source.frames(position, [frame], [camera])[camera][0]
    except SampleError:
        picture = np.full((TILE, TILE, 3), _DAMAGED, np.uint8)
    width = max(1, round(picture.shape[1] * TILE / picture.shape[0]))
    small = cv2.resize(picture, (width, TILE), interpolation=cv2.INTER_AREA)
    return _write(small, f"{frame}", (4, TILE - 6))


def _label(text: str, width: int) -> np.ndarray:
    return _write(np.full((20, width, 3), 30, np.uint8), text, (4, 14))


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> np.ndarray:
    return cv2.putText(picture.copy(), text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def histograms(numbers: stats.Numbers, tag: norm_stats.Tag, path: pathlib.Path) -> None:
    """Draws a histogram per channel of action and state into a PNG; lines mark the tag's q01 and q99."""
    from matplotlib import figure

    panels = [(kind, c) for kind in ("action", "state") for c in range(getattr(numbers, kind).shape[1])]
    rows = -(-len(panels) // _COLUMNS)
    drawing = figure.Figure(figsize=(3.2 * _COLUMNS, 1.9 * rows))
    drawing.subplots_adjust(left=0.02, right=0.98, bottom=0.25 / (1.9 * rows), top=1 - 0.25 / (1.9 * rows), hspace=0.45)
    axes = np.atleast_1d(drawing.subplots(rows, _COLUMNS)).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (kind, channel) in zip(axes, panels):
        column = getattr(numbers, kind)[:, channel].astype(np.float64)
        column = column[np.isfinite(column)]
        axis.stairs(*np.histogram(column, BINS), fill=True, color="tab:blue" if kind == "action" else "tab:gray")
        axis.set_title(f"{kind} {channel}  {getattr(numbers, f'{kind}_names')[channel]}", fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
        known = getattr(tag, kind)
        if known is not None and known.q01 is not None and known.q99 is not None and channel < known.width:
            for bound in (known.q01[channel], known.q99[channel]):
                axis.axvline(bound, color="tab:red", linewidth=1)
    drawing.savefig(path, dpi=100)


def moments(source: EpisodeSource, episodes: Sequence[int], tag: norm_stats.Tag, mode: str) -> list[Moment]:
    """Returns the middle frame of some episodes as training would show it."""
    return [_moment(source, position, int(source.episode_lengths[position]) // 2, tag, mode) for position in episodes]


def _moment(source: EpisodeSource, position: int, frame: int, tag: norm_stats.Tag, mode: str) -> Moment:
    place = f"episode {source.episode_ids[position]}, frame {frame}"
    try:
        task = source.task(position, frame)
        state = normalize.to_model_joints(source.state(position, frame), tag)
        bins = normalize.state_bins(normalize.normalize(state, tag.state, mode))
        chunk = source.chunk(position, frame, tag.horizon or max(1, round(source.fps)))
    except SampleError as error:
        return Moment(place, "", error.reason, np.zeros((0, len(source.action_names)), np.float32))
    question = prompt.robot_question(prompt.normalize_task(task), tag.setup, tag.control, bins, "robot_action")
    actions = normalize.normalize(normalize.to_model_joints(chunk.actions, tag), tag.action, mode)
    return Moment(place, task, question, actions)


def write(
    source: EpisodeSource, directory: pathlib.Path, tag: norm_stats.Tag, mode: str = "q01_q99", episodes: int = 4
) -> pathlib.Path:
    """Writes `cameras.png`, `histograms.png` and `index.html`, which shows both and some prompts.

    Args:
      source: any dataset.
      directory: made if it is not there.
      tag: statistics and strings of the prompt.
      mode: of `norm_stats.MODES`.
      episodes: how many to show.

    Returns:
      Path of the page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chosen = spread(source, episodes)
    (directory / "cameras.png").write_bytes(pictures.encode_png(contact_sheet(source, chosen)))
    histograms(stats.read(source), tag, directory / "histograms.png")
    page = directory / "index.html"
    page.write_text(_page(source, moments(source, chosen, tag, mode)), "utf-8")
    return page


def _page(source: EpisodeSource, shown: Sequence[Moment]) -> str:
    facts = {
        "episodes": source.num_episodes,
        "frames": source.num_frames,
        "frames per second": f"{source.fps:g}",
        "cameras": ", ".join(source.cameras),
        "state": ", ".join(source.state_names),
        "action": ", ".join(source.action_names),
        "digest": source.digest,
    }
    rows = "".join(f"<tr><th>{name}<td>{html.escape(str(value))}" for name, value in facts.items())
    return "\n".join(
        (
            "<!doctype html><meta charset=utf-8>",
            f"<title>{html.escape(source.name)}</title>",
            "<style>body{font:14px sans-serif;margin:2em}th{text-align:left;padding-right:1em}"
            "pre{background:#f3f3f3;padding:.6em;white-space:pre-wrap}img{max-width:100%}</style>",
            f"<h1>{html.escape(source.name)}</h1><table>{rows}</table>",
            "<h2>Cameras</h2><img src=cameras.png>",
            "<h2>Channels</h2><p>Red: 1st and 99th percentile of the statistics.</p><img src=histograms.png>",
            "<h2>Prompts</h2>",
            *(_section(moment) for moment in shown),
        )
    )


def _section(moment: Moment) -> str:
    chunk = "\n".join(" ".join(f"{value:+.2f}" for value in step) for step in moment.chunk)
    heading = html.escape(f"{moment.place}: {moment.instruction}")
    return f"<h3>{heading}</h3><pre>{html.escape(moment.text)}</pre><pre>{chunk}</pre>"
