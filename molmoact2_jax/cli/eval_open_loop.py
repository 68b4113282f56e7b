"""`molmoact2 eval open-loop`: a checkpoint against recorded actions."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.cli import dataset, meter, numbers
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.eval import open_loop, scorecard
from molmoact2_jax.serve.policy import Policy


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("open-loop", description="Compares predicted with recorded actions of episodes.")
    parser.add_argument("checkpoint", help="directory in the released format, or a run, at an address too")
    dataset.add_arguments(parser)
    parser.add_argument("--norm-tag", required=True, help="name of the robot in the checkpoint's norm_stats.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, help="only the last episodes (default: all that DATASET selects)")
    which.add_argument("--held-out", type=int, metavar="N", help="those that a run with data.held_out=N did not see")
    parser.add_argument("--frames", type=int, help="of each episode, spread over it (default: all)")
    parser.add_argument("--seeds", type=numbers.ranges, default="0-2", help="of the noise; each predicts anew")
    parser.add_argument("--batch", type=int, default=16, help="predictions per call (default 16)")
    parser.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument("--plots", action="store_true", help="draws truth against prediction; needs --out")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="for open_loop.json and plots")
    parser.add_argument("--json", action="store_true", help="prints the result file instead of a table")


def run(args: argparse.Namespace) -> int:
    """Predicts, compares, writes, shows a table."""
    if args.plots and not args.out:
        raise ValueError("--plots: without --out, expected a directory for them. Add --out DIR.")
    source = dataset.open_source(args, args.dataset)
    policy = Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    tag = policy.host.tag(args.norm_tag)
    options = {} if args.num_steps is None else {"num_steps": args.num_steps}
    planner = scorecard.planner(policy, policy.host.horizon(tag), **options)
    setting = open_loop.Setting(_episodes(args, source), args.frames, args.seeds, args.batch)
    with meter.Meter("open-loop", "predictions") as progress:
        found = open_loop.compare(planner, source, tag, args.norm_tag, setting, progress=progress)
    result = open_loop.summary(found, tag.action) | dict(
        policy=dict(checkpoint=str(args.checkpoint), dtype=args.dtype),
        dataset=dict(path=args.dataset, name=source.name, digest=source.digest, positions=list(setting.episodes)),
        protocol=dict(
            norm_tag=args.norm_tag, frames=args.frames, seeds=list(args.seeds), held_out=args.held_out, last=args.last
        ),
        machine=scorecard.machine(),
    )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "open_loop.json").write_text(json.dumps(result, indent=1))
    if args.plots:
        from molmoact2_jax.eval import open_loop_plots

        open_loop_plots.save(found, args.out, tag.n_action_steps or policy.host.horizon(tag))
    print(json.dumps(result) if args.json else table(result))
    return 0


def _episodes(args: argparse.Namespace, source: EpisodeSource) -> tuple[int, ...]:
    if args.held_out is not None:
        return open_loop.kept_apart(source, args.held_out)
    return open_loop.held_out(source, args.last or int((source.episode_lengths > 0).sum()))


def table(result: Mapping[str, Any]) -> str:
    """Returns the errors by channel, and over the chunk, as text."""
    width = max(map(len, [*result["channels"], "channel"]))
    lines = [f"{'channel':<{width}}  mean error  always the mean  spread over seeds  first step  last step"]
    for name, channel in result["channels"].items():
        steps = [value for value in result["steps"][name] if value is not None]
        lines.append(
            f"{name:<{width}}  {channel['error']:>10.4g}  {channel['constant']:>15.4g}  {channel['spread']:>17.4g}"
            f"  {steps[0]:>10.4g}  {steps[-1]:>9.4g}"
        )
    by_seed = ", ".join(f"{value:.4g}" for value in result["normalised_by_seed"])
    lines.append(
        f"{result['frames']} frames of {result['episodes']} episodes, {result['horizon']} steps; normalised error "
        f"{result['normalised']:.4g} (always the mean {result['normalised_constant']:.4g}; by seed {by_seed})"
    )
    return "\n".join(lines)
