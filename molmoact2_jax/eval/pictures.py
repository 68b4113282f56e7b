"""Drawings that commands and notebooks share: depth grids, action chunks, camera strips, curves.

Each function returns a matplotlib figure of its own, without global state; `save` writes it as PNG.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

GRID = 10  # cells along each side of a depth grid
RECORDED, PREDICTED = "#333333", "#d62728"
_PANEL = 2.2  # inches
_CHANNEL = (3.0, 1.8)  # inches


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
      others: u8[H, W, 3] of each further camera, as many in all rows.
    """

    title: str
    picture: np.ndarray
    codes: np.ndarray
    mask: np.ndarray | None = None
    depth: np.ndarray | None = None
    decoded: np.ndarray | None = None
    others: Sequence[np.ndarray] = ()


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

    columns = _columns(frames, levels)
    figure = Figure(figsize=_sheet_size(columns), layout="constrained")
    _draw_sheet(figure, frames, columns)
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=_grid_size(predicted.shape[-1], *_CHANNEL), layout="constrained")
    _draw_actions(figure, predicted, recorded, names)
    figure.suptitle(title)
    return figure


def call(
    frames: Sequence[DepthFrame],
    predicted: np.ndarray,
    names: Sequence[str] = (),
    title: str = "",
    levels: np.ndarray | None = None,
) -> Figure:
    """Draws how a model reasoned about depth, and the chunk it chose: `depth_frames` above `actions`."""
    from matplotlib.figure import Figure

    columns = _columns(frames, levels)
    (width, above), (least, below) = _sheet_size(columns), _grid_size(predicted.shape[-1], *_CHANNEL)
    figure = Figure(figsize=(max(width, least), above + below + 0.3), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=[above, below])
    _draw_sheet(figure.add_subfigure(halves[0]), frames, columns)
    _draw_actions(figure.add_subfigure(halves[1]), predicted, None, names)
    figure.suptitle(title)
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=_grid_size(len(history), 4.0, 2.4), layout="constrained")
    panels = _grid(figure, len(history))
    for axes, (name, (steps, values)) in zip(panels, history.items(), strict=True):
        raw = np.asarray(values, np.float64)
        axes.plot(steps, raw, color=PREDICTED, alpha=0.3 if smoothing else 1.0, linewidth=1)
        if smoothing:
            axes.plot(steps, smooth(raw, smoothing), color=PREDICTED)
        finite = raw[np.isfinite(raw)]
        if len(finite) and finite.min() > 0 and finite.max() > 3 * finite.min():
            axes.set_yscale("log")
        axes.set_title(name, fontsize="small")
    figure.supxlabel("step")
    return figure


def smooth(values: np.ndarray, share: float) -> np.ndarray:
    """Returns the moving average of which each value keeps `share`; NaN where a value is not finite."""
    out, mean, weight = np.full(len(values), np.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
            out[i] = mean / weight
    return out


def _grid_size(count: int, width: float, height: float) -> tuple[float, float]:
    return width * min(4, count), height * -(-count // 4) + 0.5


def _grid(figure: FigureBase, count: int) -> list[Any]:
    """Returns `count` panels, up to four in a row."""
    panels = list(figure.subplots(-(-count // 4), min(4, count), squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def _draw_actions(figure: FigureBase, predicted: np.ndarray, recorded: np.ndarray | None, names: Sequence[str]) -> None:
    samples = predicted if predicted.ndim == 3 else predicted[None]
    panels = _grid(figure, samples.shape[2])
    for c, axes in enumerate(panels):
        if recorded is not None:
            axes.plot(recorded[:, c], color=RECORDED, label="recorded")
        for sample in samples if len(samples) > 1 else ():
            axes.plot(sample[:, c], color=PREDICTED, alpha=0.2, linewidth=0.8)
        axes.plot(samples.mean(axis=0)[:, c], color=PREDICTED, marker=".", label="predicted")
        axes.set_title(names[c] if len(names) else f"channel {c}", fontsize="small")
    if recorded is not None:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    figure.supxlabel("step")


class _Panel(NamedTuple):
    """One panel of a depth sheet; its values are None where a frame has none."""

    title: str
    values: np.ndarray | None
    draw: Callable[[Any], None]


_Columns = list[tuple[_Panel, ...]]


def _columns(frames: Sequence[DepthFrame], levels: np.ndarray | None) -> _Columns:
    """Returns the panels of all frames by columns, without those that no frame has."""
    if not frames:
        raise ValueError("depth_frames: no frames, expected one or more.")
    for frame in frames:
        _check(frame, len(frames[0].others))
    columns = zip(*(_panels(frame, levels) for frame in frames), strict=True)
    return [column for column in columns if any(panel.values is not None for panel in column)]


def _check(frame: DepthFrame, cameras: int) -> None:
    for name in ("codes", "mask"):
        values = getattr(frame, name)
        if values is not None and np.shape(values) != (GRID * GRID,):
            raise ValueError(f"depth_frames: {name} of {frame.title!r} is {np.shape(values)}, expected ({GRID**2},).")
    if len(frame.others) != cameras:
        raise ValueError(
            f"depth_frames: {len(frame.others)} other cameras in {frame.title!r}, expected {cameras} as in the first."
        )


def _panels(frame: DepthFrame, levels: np.ndarray | None) -> list[_Panel]:
    cameras = [("picture", frame.picture), *((f"camera {i}", other) for i, other in enumerate(frame.others, 2))]
    return [
        *(_Panel(title, picture, functools.partial(_picture, picture)) for title, picture in cameras),
        _Panel("changed cells", frame.mask, functools.partial(_mask, frame)),
        _Panel("depth", frame.depth, functools.partial(_depth, frame)),
        _Panel("codes", frame.codes, functools.partial(_codes, frame, levels)),
        _Panel("decoded", frame.decoded, functools.partial(_decoded, frame)),
    ]


def _sheet_size(columns: _Columns) -> tuple[float, float]:
    return _PANEL * len(columns) + 0.6, _PANEL * len(columns[0]) + 0.4


def _draw_sheet(figure: FigureBase, frames: Sequence[DepthFrame], columns: _Columns) -> None:
    grid = figure.subplots(len(frames), len(columns), squeeze=False)
    for axes, panel in zip(grid.T.flat, (panel for column in columns for panel in column), strict=True):
        axes.set(xticks=[], yticks=[])
        if panel.values is not None:
            panel.draw(axes)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column[0].title, fontsize="small")
    for axes, frame in zip(grid[:, 0], frames, strict=True):
        axes.set_ylabel(frame.title, fontsize="small")


def _picture(picture: np.ndarray, axes: Any) -> None:
    axes.imshow(picture)


def _mask(frame: DepthFrame, axes: Any) -> None:
    """Shows the picture where it changed, and its shadow elsewhere."""
    from PIL import Image

    size = 32 * GRID
    picture = np.asarray(Image.fromarray(frame.picture).resize((size, size)), np.float32)
    changed = np.asarray(frame.mask).reshape(GRID, GRID).repeat(32, axis=0).repeat(32, axis=1)
    axes.imshow(np.where(changed[..., None], picture, 0.25 * picture + 20).astype(np.uint8))
    axes.set_xlabel(f"{np.asarray(frame.mask).sum()} of {GRID**2}", fontsize="x-small")


def _codes(frame: DepthFrame, levels: np.ndarray | None, axes: Any) -> None:
    grid = np.reshape(frame.codes, (GRID, GRID))
    shades = grid if levels is None else levels[grid]
    low, high = (0, 127) if levels is None else (levels.min(), levels.max())
    axes.imshow(shades, cmap="twilight" if levels is None else "viridis", vmin=low, vmax=high)
    for (y, x), code in np.ndenumerate(grid):
        bright = (shades[y, x] - low) / max(high - low, 1e-9) > 0.6
        axes.text(x, y, str(code), ha="center", va="center", fontsize=3.5, color="black" if bright else "white")


def _depth(frame: DepthFrame, axes: Any) -> None:
    axes.imshow(np.squeeze(np.asarray(frame.depth)), cmap="viridis")


def _decoded(frame: DepthFrame, axes: Any) -> None:
    axes.imshow(np.squeeze(np.asarray(frame.decoded)), cmap="viridis", vmin=-1, vmax=1)
