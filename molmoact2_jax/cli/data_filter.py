"""`molmoact2 data filter`: adds what is not worth training on to a quarantine file."""

from __future__ import annotations

import argparse
import collections
from typing import Any

from molmoact2_jax.cli import dataset, meter
from molmoact2_jax.data import filters, quarantine


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "filter",
        description="Adds idle frames, short episodes and unwanted tasks to the --quarantine file; loaders honour it.",
    )
    dataset.add_arguments(parser)
    parser.add_argument(
        "--idle",
        type=float,
        default=0.0,
        metavar="PART",
        help="a frame is idle where no channel changes by more than this part of its range, such as 0.001",
    )
    parser.add_argument("--min-seconds", type=float, default=0.0, help="shortest moving segment, and episode")
    parser.add_argument("--drop-task", default="", metavar="REGEX", help="episodes whose instruction matches go")
    parser.add_argument("--keep-task", default="", metavar="REGEX", help="episodes whose instruction does not match go")
    parser.add_argument("--dry-run", action="store_true", help="only count")


def run(args: argparse.Namespace) -> int:
    """Applies the rules."""
    if args.quarantine is None and not args.dry_run:
        raise ValueError("--quarantine: missing, expected the file to add to. Or --dry-run.")
    rules = filters.Rules(args.idle, args.min_seconds, args.drop_task, args.keep_task)
    source = dataset.open_source(args, args.dataset)
    with meter.Meter(f"filtering {source.name}", "episodes") as progress:
        found = list(filters.entries(source, rules, progress))
    if not args.dry_run:
        quarantine.append(args.quarantine, found)
    before = int(source.valid.sum())
    after = int((source.valid & quarantine.valid(found, source.name, source.episode_ids, source.episode_lengths)).sum())
    source.close()
    print(f"{source.name}: {after} of {before} frames stay, {len(found)} entries")
    kinds = collections.Counter("frames" if entry.frame is not None else "episodes" for entry in found)
    for kind, number in kinds.items():
        print(f"  {number} {kind} left out")
    return 0
