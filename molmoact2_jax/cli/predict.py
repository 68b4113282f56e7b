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
    from matplotlib.figure import Figure

    from molmoact2_jax.eval.think import Codec
    from molmoact2_jax.serve.records import Action


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("predict", description="Predicts one action chunk with a checkpoint.")
    parser.add_argument("checkpoint", help="directory in the released format, or a run, at an address too")
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
    parser.add_argument(
        "--previous",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="IMAGE",
        help="what the first camera showed one call earlier, with --depth adaptive: predicted first, so that only "
        "changed cells are predicted now; repeated in their order",
    )
    parser.add_argument("--codec", type=pathlib.Path, metavar="FILE", help="depth VQ-VAE, safetensors; for --plot")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that continuous actions start from")
    parser.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="draws the chunk, and depth where there is one"
    )
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Loads the checkpoint, predicts, and shows the chunk."""
    _check(args)
    state, pictures = read_state(args.state), [_read_picture(path) for path in args.image]
    firsts = [*(_read_picture(path) for path in args.previous), pictures[0]]
    codec = _load_codec(args.codec) if args.codec else None
    begin = time.perf_counter()
    policy = molmoact2_jax.Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    channels = policy.host.tag(args.norm_tag).action
    names = channels.names if channels else None
    loaded = time.perf_counter() - begin
    options = dict(mode=args.mode, depth=args.depth, seed=args.seed, num_steps=args.num_steps)
    with policy.episode(args.norm_tag, args.task, **options) as episode:
        outs = [episode.act([first, *pictures[1:]], state) for first in firsts]
    timing = {"load": 1e3 * loaded, **outs[-1].timing}
    print(_json(outs[-1], timing) if args.json else _table(outs, names, timing))
    if args.plot:
        _plot(outs, pictures[1:], names or (), args.task, codec).savefig(args.plot, dpi=110)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.previous and args.depth != "adaptive":
        raise ValueError(f"--previous: with --depth {args.depth}, expected adaptive, which alone reads the past.")
    if args.codec and (args.depth == "off" or not args.plot):
        raise ValueError("--codec: without depth or a plot, expected --depth adaptive and --plot. It draws the codes.")


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


def _table(outs: Sequence[Action], names: Sequence[str] | None, timing: dict[str, float]) -> str:
    *before, out = outs
    steps, channels = out.actions.shape
    heads = [str(name) for name in names or range(channels)]
    width = max(10, *(len(head) + 2 for head in heads))
    lines = ["step" + "".join(f"{head:>{width}}" for head in heads)]
    lines += [f"{i:>4}" + "".join(f"{value:>{width}.4f}" for value in row) for i, row in enumerate(out.actions)]
    phases = ", ".join(f"{phase} {value:.0f}" for phase, value in timing.items())
    note = "" if before else " (the first call compiles)"
    lines.append(f"{steps} steps of {channels} channels; ms: {phases}{note}")
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


def _load_codec(path: pathlib.Path) -> Codec:
    from molmoact2_jax.checkpoint import depth_vq

    return depth_vq.load(path)


def _plot(
    outs: Sequence[Action], others: Sequence[Image.Image], names: Sequence[str], task: str, codec: Codec | None
) -> Figure:
    """Draws the depth of all calls, where the model reasoned about it, and the last chunk."""
    from molmoact2_jax.eval import pictures

    chunk = outs[-1].actions
    if outs[-1].depth_cache is None:
        return pictures.actions(chunk, names=names, title=task)
    from molmoact2_jax.data import images
    from molmoact2_jax.eval import think

    rows = think.frames(outs, [images.coerce(other) for other in others], codec)
    return pictures.call(rows, chunk, names, task, think.levels(codec))
