"""`molmoact2 data repack`: any dataset to ArrayRecord files of ready pictures."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from molmoact2_jax.cli import dataset, meter
from molmoact2_jax.data import repack


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "repack",
        description="Copies a dataset so that a shuffled frame costs one small read. An interrupted copy goes on.",
    )
    dataset.add_arguments(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="the copy")
    parser.add_argument("--encoding", default="jpeg", choices=repack.ENCODINGS, help="of pictures (default: jpeg)")
    parser.add_argument("--size", metavar="HxW", help="resize as the model does, such as 378x378")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG (default: 95)")
    parser.add_argument(
        "--budget", type=float, default=0.01, help="part of the pictures that may be unreadable (default: 0.01)"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Repacks with progress."""
    plan = repack.Plan(encoding=args.encoding, size=_size(args.size), quality=args.quality, budget=args.budget)
    source = dataset.open_source(args, args.dataset)
    with meter.Meter(f"repacking {source.name}", "episodes") as progress:
        directory = repack.repack(source, args.out, plan, workers=args.workers, progress=progress)
    source.close()
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{directory}: {source.num_episodes} episodes, {source.num_frames} frames, {size / 1e9:.3f} GB")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ValueError(f"--size: {text!r}, expected height and width such as 378x378.")
    return int(height), int(width)
