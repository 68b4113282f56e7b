"""`molmoact2 predict`: one action chunk as a table, as JSON or as a plot."""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import molmoact2_jax

if TYPE_CHECKING:
    from molmoact2_jax.serve.records import Action


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("predict", description="Predicts one action chunk with a checkpoint.")
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory in the released format")
    parser.add_argument(
        "--image",
        action="append",
        required=True,
        type=pathlib.Path,
        help="picture of a camera, repeated in their order",
    )
    parser.add_argument("--task", required=True, help="instruction in words")
    parser.add_argument(
        "--state",
        nargs="+",
        help="joint state in the robot's units: numbers apart or with commas, or a .npy file; "
        "write --state=-1e-3,0.2,... where one is negative with an exponent",
    )
    parser.add_argument("--norm-tag", required=True, help="name of the robot in the checkpoint's norm_stats.json")
    parser.add_argument("--mode", choices=("continuous", "discrete"), default="continuous")
    parser.add_argument("--depth", choices=("off", "full", "adaptive"), default="off", help="Think checkpoints only")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that continuous actions start from")
    parser.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="draws the chunk, a panel per channel")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Loads the checkpoint, predicts, and shows the chunk."""
    state, pictures = read_state(args.state), [_read_picture(path) for path in args.image]
    begin = time.perf_counter()
    policy = molmoact2_jax.Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    channels = policy.host.tag(args.norm_tag).action
    names = channels.names if channels else None
    loaded = time.perf_counter() - begin
    options = dict(mode=args.mode, depth=args.depth, seed=args.seed, num_steps=args.num_steps)
    out = policy.predict_action(pictures, args.task, state, args.norm_tag, **options)
    timing = {"load": 1e3 * loaded, **out.timing}
    print(_json(out, timing) if args.json else _table(out, names, timing))
    if args.plot:
        _plot(out.actions, names, args.task).savefig(args.plot)
    return 0


def read_state(words: Sequence[str] | None) -> np.ndarray | None:
    """Reads a joint state: one .npy file, or numbers in separate words or between commas.

    Raises:
      ValueError: a word that is no number. FileNotFoundError: no such file.
    """
    if words is None:
        return None
    if len(words) == 1 and words[0].endswith(".npy"):
        return np.asarray(np.load(words[0], allow_pickle=False), np.float32)
    numbers = [number for word in words for number in word.replace(",", " ").split()]
    try:
        return np.array([float(number) for number in numbers], np.float32)
    except ValueError as error:
        raise ValueError(f"--state: {error}, expected numbers or one .npy file.") from error


def _read_picture(path: pathlib.Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def _table(out: Action, names: Sequence[str] | None, timing: dict[str, float]) -> str:
    steps, channels = out.actions.shape
    heads = [str(name) for name in names or range(channels)]
    width = max(10, *(len(head) + 2 for head in heads))
    lines = ["step" + "".join(f"{head:>{width}}" for head in heads)]
    lines += [f"{i:>4}" + "".join(f"{value:>{width}.4f}" for value in row) for i, row in enumerate(out.actions)]
    phases = ", ".join(f"{phase} {value:.0f}" for phase, value in timing.items())
    lines.append(f"{steps} steps of {channels} channels; ms: {phases} (the first call compiles)")
    if out.depth_codes is not None:
        lines.append(f"depth: {out.changed} cells predicted in {out.passes} passes")
    return "\n".join(lines)


def _json(out: Action, timing: dict[str, float]) -> str:
    def numbers(array: np.ndarray | None) -> list | None:
        return None if array is None else array.tolist()

    return json.dumps(
        {
            "actions": numbers(out.actions),
            "token_ids": numbers(out.token_ids),
            "depth_codes": numbers(out.depth_codes),
            "passes": out.passes,
            "changed": out.changed,
            "timing_ms": timing,
        }
    )


def _plot(actions: np.ndarray, names: Sequence[str] | None, task: str) -> Any:
    from matplotlib.figure import Figure

    count = actions.shape[1]
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3 * columns, 1.8 * rows + 0.5), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, sharex=True, squeeze=False).flat):
        if i >= count:
            axes.set_axis_off()
            continue
        axes.plot(actions[:, i], marker=".")
        axes.set_title(names[i] if names else f"channel {i}", fontsize="small")
    figure.suptitle(task)
    figure.supxlabel("step")
    return figure
