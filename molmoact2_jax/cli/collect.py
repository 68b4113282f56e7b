"""`molmoact2 collect`: demonstrations of a simulator's scripted experts."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.cli import meter, numbers
from molmoact2_jax.envs import experts, registry
from molmoact2_jax.eval import collect


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    usual = experts.Disturbance()
    parser = subparsers.add_parser(
        "collect",
        description="Records successful demonstrations of scripted experts as LeRobot and RLDS datasets. An "
        "interrupted collection is finished by the same command.",
    )
    parser.add_argument("directory", type=pathlib.Path, help="receives a folder per format, and collect.json")
    parser.add_argument("--env", default="metaworld", help=f"{', '.join(registry.ADAPTERS)}, or package.module:Class")
    parser.add_argument("--tasks", required=True, type=numbers.words, help="names, with commas between them")
    parser.add_argument("--per-task", type=int, default=100, help="demonstrations of each task (default 100)")
    parser.add_argument("--first-seed", type=int, default=1000, help="seeds are tried from this one on")
    parser.add_argument(
        "--disturbed",
        type=float,
        default=usual.share,
        metavar="SHARE",
        help=f"episodes executed with noise, whose labels stay the expert's (default {usual.share})",
    )
    parser.add_argument(
        "--moved",
        type=float,
        default=usual.moved_share,
        metavar="SHARE",
        help=f"episodes that start after a few unrecorded random moves (default {usual.moved_share})",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="of the simulator; depth=true leaves maps too",
    )
    parser.add_argument("--formats", type=numbers.words, default=collect.FORMATS, help="lerobot,rlds (default: both)")
    parser.add_argument("--processes", type=int, default=2, help="that run the simulator; 0 runs it here")
    parser.add_argument("--json", action="store_true", help="prints the report instead of a table")


def run(args: argparse.Namespace) -> int:
    """Collects, and shows what there is."""
    order = collect.Order(
        env=args.env,
        tasks=args.tasks,
        per_task=args.per_task,
        first_seed=args.first_seed,
        disturbance=experts.Disturbance(share=args.disturbed, moved_share=args.moved),
        formats=args.formats,
        options=dict(map(numbers.setting, args.option)),
    )
    with meter.Meter("collect", "episodes") as progress:
        report = collect.collect(order, args.directory, args.processes, lambda done, total, _: progress(done, total))
    print(json.dumps(report) if args.json else table(report, args.directory))
    return 0


def table(report: Mapping[str, Any], directory: pathlib.Path) -> str:
    """Returns what was recorded, as text."""
    width = max(map(len, [*report["tasks"], "task"]))
    lines = [f"{'task':<{width}}  episodes  attempts  frames  mean length"]
    for name, task in report["tasks"].items():
        counts = f"{task['episodes']:>8}  {task['attempts']:>8}  {task['frames']:>6}  {task['mean_length']:>11.1f}"
        lines.append(f"{name:<{width}}  {counts}")
    paths = ", ".join(str(directory / name) for name in report["order"]["formats"])
    lines.append(f"{report['episodes']} episodes, {report['frames']} frames: {paths}")
    return "\n".join(lines)
