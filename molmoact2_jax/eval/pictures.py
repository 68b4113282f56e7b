"""Drawings that commands and notebooks share: depth grids, action chunks, camera strips, curves.

Each function returns a matplotlib figure of its own, without global state; `save` writes it as PNG.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 10  # cells along each side of a depth grid
RECORDED, PREDICTED = "#333333", "#d62728"
_PANEL = 2.2  # inches


@dataclasses.dataclass(frozen=True)
class DepthFrame:
    """What one row of `depth_frames` shows; None leaves a panel out.

    Attributes:
      title: words beside the row.
      picture: u8[H, W, 3], first camera.
      codes: int[100].
      mask: bool[100], true = changed since the frame before.
      depth: [H, W], the map that the codes were made from, near is large.
      decoded: [H, W], what the codec draws from the codes.
    """

    title: str
    picture: np.ndarray
    codes: np.ndarray
    mask: np.ndarray | None = None
    depth: np.ndarray | None = None
    decoded: np.ndarray | None = None


def save(figure: Figure, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a figure as PNG, with its directory. Returns the path."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=110)
    return file


def depth_frames(frames: Sequence[DepthFrame], levels: np.ndarray | None = None) -> Figure:
    """Draws frames as rows: picture, cells that changed, depth, codes, decoded depth.

    Args:
      frames: one or more.
      levels: f32[codes], how near each code is on average (`depth_vq.levels`); codes are then shaded by it. Without
        it they are shaded by their number, which means nothing but tells them apart.

    Raises:
      ValueError: no frames, or codes that are not 100.
    """
    from matplotlib.figure import Figure

    for frame in frames:
        _check(frame)
    if not frames:
        raise ValueError("depth_frames: no frames, expected one or more.")
    shown = {name for frame in frames for name, value in vars(frame).items() if value is not None}
    names = [name for name in ("picture", "mask", "depth", "codes", "decoded") if name in shown]
    figure = Figure(figsize=(_PANEL * len(names) + 0.6, _PANEL * len(frames) + 0.4), layout="constrained")
    panels = figure.subplots(len(frames), len(names), squeeze=False)
    for row, frame in zip(panels, frames, strict=True):
        for axes, name in zip(row, names, strict=True):
            axes.set(xticks=[], yticks=[])
            if getattr(frame, name) is not None:
                _DEPTH_PANELS[name](axes, frame, levels)
        row[0].set_ylabel(frame.title, fontsize="small")
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title("changed cells" if name == "mask" else name, fontsize="small")
    return figure


def actions(
    predicted: np.ndarray, recorded: np.ndarray | None = None, names: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draws a chunk, a panel per channel.

    Args:
      predicted: [A, C], or [S, A, C] for S samples, drawn with their mean.
      recorded: [A', C], the true actions.
      names: of the C channels, with units where known.
      title: of the figure.
    """
    samples = predicted if predicted.ndim == 3 else predicted[None]
    figure, panels = _grid(samples.shape[2], 3.0, 1.8)
    for c, axes in enumerate(panels):
        if recorded is not None:
            axes.plot(recorded[:, c], color=RECORDED, label="recorded")
        for sample in samples if len(samples) > 1 else ():
            axes.plot(sample[:, c], color=PREDICTED, alpha=0.2, linewidth=0.8)
        axes.plot(samples.mean(axis=0)[:, c], color=PREDICTED, marker=".", label="predicted")
        axes.set_title(names[c] if len(names) else f"channel {c}", fontsize="small")
    if recorded is not None:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    figure.suptitle(title)
    figure.supxlabel("step")
    return figure


def strips(cameras: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str] = ()) -> Figure:
    """Draws pictures u8[H, W, 3] over time, a row per camera; `titles` are the words above the columns."""
    from matplotlib.figure import Figure

    columns = max(map(len, cameras.values()))
    figure = Figure(figsize=(_PANEL * columns + 0.4, _PANEL * len(cameras)), layout="constrained")
    panels = figure.subplots(len(cameras), columns, squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for row, (camera, pictures) in zip(panels, cameras.items(), strict=True):
        row[0].set_ylabel(camera.rsplit(".", 1)[-1], fontsize="small")
        for axes, picture in zip(row, pictures):
            axes.imshow(picture)
    for axes, title in zip(panels[0], titles):
        axes.set_title(title, fontsize="small")
    return figure


def curves(history: Mapping[str, tuple[Sequence[float], Sequence[float]]], smoothing: float = 0.0) -> Figure:
    """Draws scalars against steps, a panel each, logarithmic where all values are positive.

    Args:
      history: {name: (steps, values)}; values that are not finite leave gaps.
      smoothing: share of a moving average that each value keeps, in [0, 1); the raw values stay behind it.
    """
    figure, panels = _grid(len(history), 4.0, 2.4)
    for axes, (name, (steps, values)) in zip(panels, history.items(), strict=True):
        raw = np.asarray(values, np.float64)
        axes.plot(steps, raw, color=PREDICTED, alpha=0.3 if smoothing else 1.0, linewidth=1)
        if smoothing:
            axes.plot(steps, _smooth(raw, smoothing), color=PREDICTED)
        finite = raw[np.isfinite(raw)]
        if len(finite) and finite.min() > 0 and finite.max() > 3 * finite.min():
            axes.set_yscale("log")
        axes.set_title(name, fontsize="small")
    figure.supxlabel("step")
    return figure


def _smooth(values: np.ndarray, share: float) -> np.ndarray:
    out, mean, weight = np.full(len(values), np.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
            out[i] = mean / weight
    return out


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Returns a figure with `count` panels, up to four in a row."""
    from matplotlib.figure import Figure

    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _check(frame: DepthFrame) -> None:
    for name in ("codes", "mask"):
        values = getattr(frame, name)
        if values is not None and np.shape(values) != (GRID * GRID,):
            raise ValueError(f"depth_frames: {name} of {frame.title!r} is {np.shape(values)}, expected ({GRID**2},).")


def _picture(axes: Any, frame: DepthFrame, levels: np.ndarray | None) -> None:
    axes.imshow(frame.picture)


def _mask(axes: Any, frame: DepthFrame, levels: np.ndarray | None) -> None:
    """Shows the picture where it changed, and its shadow elsewhere."""
    from PIL import Image

    size = 32 * GRID
    picture = np.asarray(Image.fromarray(frame.picture).resize((size, size)), np.float32)
    changed = np.asarray(frame.mask).reshape(GRID, GRID).repeat(32, axis=0).repeat(32, axis=1)
    axes.imshow(np.where(changed[..., None], picture, 0.25 * picture + 20).astype(np.uint8))
    axes.set_xlabel(f"{np.asarray(frame.mask).sum()} of {GRID**2}", fontsize="x-small")


def _codes(axes: Any, frame: DepthFrame, levels: np.ndarray | None) -> None:
    grid = np.reshape(frame.codes, (GRID, GRID))
    shades = grid if levels is None else levels[grid]
    low, high = (0, 127) if levels is None else (levels.min(), levels.max())
    axes.imshow(shades, cmap="twilight" if levels is None else "viridis", vmin=low, vmax=high)
    for (y, x), code in np.ndenumerate(grid):
        bright = (shades[y, x] - low) / max(high - low, 1e-9) > 0.6
        axes.text(x, y, str(code), ha="center", va="center", fontsize=3.5, color="black" if bright else "white")


def _depth(axes: Any, frame: DepthFrame, levels: np.ndarray | None) -> None:
    axes.imshow(np.squeeze(np.asarray(frame.depth)), cmap="viridis")


def _decoded(axes: Any, frame: DepthFrame, levels: np.ndarray | None) -> None:
    axes.imshow(np.squeeze(np.asarray(frame.decoded)), cmap="viridis", vmin=-1, vmax=1)


_DEPTH_PANELS = {"picture": _picture, "mask": _mask, "depth": _depth, "codes": _codes, "decoded": _decoded}
