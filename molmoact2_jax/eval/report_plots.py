"""Drawings of a training run for the report: its loss, and what was measured on held-out episodes meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from molmoact2_jax.eval import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, HELD_OUT, PLAIN = "#2463c9", "#bd5a1f", "#555555"
LOSSES = ("loss/flow", "loss/language")

Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of a scalar where it was written, without those that were not finite."""
    known = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*known, strict=True) if known else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)


def training(lines: Lines) -> Figure:
    """Draws each loss that the run minimised with its validation, and the open-loop error of each robot.

    A loss that is zero throughout was not part of the run. Expects at least one loss.
    """
    from matplotlib.figure import Figure

    losses = [name for name in LOSSES if series(lines, name)[1].any()] or ["loss"]
    robots = sorted({name for line in lines for name in line if name.startswith("open_loop/") and name.count("/") == 1})
    count = len(losses) + len(robots)
    rows = math.ceil(count / 2)
    figure = Figure(figsize=(9.2, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, name in zip(panels, losses, strict=False):
        _loss(axes, lines, name)
    for axes, name in zip(panels[len(losses) :], robots, strict=False):
        _open_loop(axes, lines, name)
    for axes in panels[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small")
        axes.set_xlabel("step", fontsize="small")
        axes.legend(fontsize="small", frameon=False)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure


def _loss(axes: Any, lines: Lines, name: str) -> None:
    from matplotlib import ticker

    steps, values = series(lines, name)
    axes.plot(steps, values, color=TRAIN, alpha=0.35, linewidth=0.9)
    axes.plot(steps, pictures.smooth(values, 1 - min(1, 10 / len(values))), color=TRAIN, label="training")
    held, found = series(lines, f"validation/{name}")
    if len(held):
        axes.plot(held, found, color=HELD_OUT, marker="o", markersize=3.5, label="held-out episodes")
    if values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(name, fontsize="medium", loc="left")


def _open_loop(axes: Any, lines: Lines, name: str) -> None:
    axes.plot(*series(lines, name), color=HELD_OUT, marker="o", markersize=3.5, label="predicted actions")
    axes.plot(*series(lines, f"{name}/constant"), color=PLAIN, linestyle="--", label="always the mean action")
    axes.set_ylim(bottom=0)
    axes.set_title(f"open-loop error, {name.partition('/')[2]}", fontsize="medium", loc="left")
    axes.set_ylabel("half ranges of a channel", fontsize="small")
