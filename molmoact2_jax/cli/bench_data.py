"""`molmoact2 bench data`: how fast a robot dataset becomes batches, stage by stage and per core."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
from typing import Any

import cv2
import numpy as np

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.cli import dataset
from molmoact2_jax.data import loader, norm_stats, stats
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.data.stream import Stream
from molmoact2_jax.eval import throughput
from molmoact2_jax.train import feed, recipe


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "data",
        description="Times reading, decoding, resizing, tokenising, packing, planning (drawing, tokenising and packing "
        "together) and whole batches. All runs in this process; rates per core are items per second of processor time.",
    )
    dataset.add_arguments(parser)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, metavar="DIR", help="tokenizer and processor")
    parser.add_argument("--tag", metavar="NAME", help="robot in its statistics (default: the dataset's own statistics)")
    orders = ("shuffled", "sorted")
    parser.add_argument(
        "--order", choices=orders, default=orders[0], help="decode single frames, or runs of neighbours"
    )
    parser.add_argument("--frames", type=int, default=500, help="frames to decode and examples to make (default: 500)")
    parser.add_argument("--crop-size", type=int, metavar="PIXELS", help="resize to this (default: the checkpoint's)")
    parser.add_argument("--tokens", type=int, default=2100, help="of a row (default: 2100)")
    formats = ("continuous", "discrete", "both")
    parser.add_argument("--actions", choices=formats, default=formats[0], help="what is learnt (default: continuous)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of frames")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the stages one after another and prints them."""
    cv2.setNumThreads(1)
    cfg = config_json.load(args.checkpoint)
    sides = feed.Sides.load(args.checkpoint, cfg)
    if args.crop_size:
        sides = _resized(sides, args.crop_size)
    source = dataset.open_source(args, args.dataset)
    entry = recipe.RobotSet(args.dataset, args.tag or source.name)
    choices = recipe.DataConfig(robots=(entry,), tokens=args.tokens, robot={"action_format": args.actions})
    if not args.tag:
        sides = _own_statistics(sides, source)
    stream = feed.robot_stream(cfg, choices, sides, [(entry, source)])
    runs = throughput.choose(source, args.frames, args.order, args.seed)
    facts = _facts(args, source, stream)
    stages = [
        *throughput.picture_stages(source, runs, sides.encoding.processor),
        *throughput.planning_stages(stream, _drawn(source, args.frames, args.seed)),
    ]
    whole, report = throughput.batch_stages(stream, args.frames)
    source.close()
    facts["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    _show(args, facts, [*stages, *whole], report)
    return 0


def _drawn(source: EpisodeSource, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(np.flatnonzero(source.valid), count).tolist()


def _resized(sides: feed.Sides, size: int) -> feed.Sides:
    processor = dataclasses.replace(sides.encoding.processor, image_size=size)
    return dataclasses.replace(sides, encoding=dataclasses.replace(sides.encoding, processor=processor))


def _own_statistics(sides: feed.Sides, source: EpisodeSource) -> feed.Sides:
    facts = norm_stats.Tag(horizon=max(1, round(source.fps)), normalize_gripper=True)
    tag = stats.measure_sources([source], facts)
    return dataclasses.replace(sides, stats=norm_stats.NormStats("q01_q99", {source.name: tag}))


def _facts(args: argparse.Namespace, source: EpisodeSource, stream: Stream) -> dict[str, Any]:
    return {
        "dataset": source.name,
        "digest": source.digest,
        "order": args.order,
        "cameras": len(source.cameras),
        "crop_size": stream.shape.crop_size,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _show(
    args: argparse.Namespace, facts: dict[str, Any], stages: list[throughput.Stage], report: loader.Report
) -> None:
    if args.json:
        print(json.dumps(facts | {"stages": [stage.to_json() for stage in stages], "rows": report.scalars()}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in facts.items() if key != "digest"))
    for stage in stages:
        rates = f"{stage.rate:>10.1f}/s {stage.core_rate:>10.1f}/s per core"
        print(f"  {stage.name:<10} {stage.items:>7} {stage.unit:<9} {rates}")
    filled = ", ".join(f"{part:.0%} of {name}" for name, part in report.fill().items())
    bounds = ", ".join(f"{name} {count / report.rows:.0%}" for name, count in report.bounds.most_common())
    print(f"  rows use {filled}; bounded by {bounds}")
