"""Drawings of an open-loop comparison."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from molmoact2_jax.eval import open_loop
from molmoact2_jax.eval.open_loop import Comparison

COLOURS = {"recorded": "#333333", "predicted": "#d62728"}


def episode(found: Comparison, position: int, executed: int, units: Sequence[str] = ()) -> Figure:
    """Draws recorded against predicted actions along one episode, a panel per channel.

    Chunks are drawn as a robot would carry them out: `executed` steps of each, then the next; a band shows the spread
    over seeds.

    Args:
      found: with all frames of the episode.
      position: of the episode in the source.
      executed: steps of each chunk.
      units: of the channels, for the axes.
    """
    rows = np.flatnonzero(found.episode == position)
    truth = found.recorded[rows, 0]
    figure = Figure(
        figsize=(3.2 * min(4, len(found.names)), 2.2 * -(-len(found.names) // 4) + 0.6), layout="constrained"
    )
    panels = figure.subplots(-(-len(found.names) // 4), min(4, len(found.names)), squeeze=False).flat
    for c, axes in enumerate(panels):
        if c >= len(found.names):
            axes.set_axis_off()
            continue
        axes.plot(found.frame[rows], truth[:, c], color=COLOURS["recorded"], label="recorded")
        for row in rows[::executed]:
            _chunk(axes, found, row, c, executed)
        axes.set_title(found.names[c], fontsize="small")
        axes.set_ylabel(units[c] if units else "", fontsize="x-small")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    figure.suptitle(f"episode {position}: {found.task[rows[0]]}", fontsize="medium", x=0.02, ha="left")
    figure.supxlabel("frame", fontsize="small")
    return figure


def _chunk(axes, found: Comparison, row: int, channel: int, executed: int) -> None:
    steps = min(executed, int(found.valid[row].sum()))
    at = found.frame[row] + np.arange(steps)
    values = found.predicted[:, row, :steps, channel]
    first = row == np.flatnonzero(found.episode == found.episode[row])[0]
    label = "predicted" if first else None
    axes.plot(at, values.mean(axis=0), color=COLOURS["predicted"], marker=".", markersize=3, label=label)
    axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=COLOURS["predicted"], alpha=0.2, linewidth=0)


def horizon(found: Comparison) -> Figure:
    """Draws how the error of each channel grows along the chunk, with that of each seed behind the mean."""
    errors = open_loop.mean(found.error, 1)  # [R, A, C]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for c, name in enumerate(found.names):
        (line,) = axes.plot(errors[:, :, c].mean(axis=0), label=name)
        for each in errors[:, :, c]:
            axes.plot(each, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set_xlabel("step of the chunk")
    axes.set_ylabel("mean absolute error, robot units")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure


def save(found: Comparison, directory: pathlib.Path, executed: int) -> list[pathlib.Path]:
    """Writes the drawings of the first episode of each task and of the horizon as PNG. Returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    firsts = {task: int(found.episode[found.task.index(task)]) for task in sorted(set(found.task))}
    figures = {f"episode_{position}": episode(found, position, executed) for position in firsts.values()}
    figures["horizon"] = horizon(found)
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png", dpi=110)
    return [directory / f"{name}.png" for name in figures]
