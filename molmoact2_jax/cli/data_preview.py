"""`molmoact2 data preview`: a page with pictures, histograms and prompts of a dataset."""

from __future__ import annotations

import argparse
import logging
import pathlib
from typing import Any

from molmoact2_jax.cli import dataset
from molmoact2_jax.data import norm_stats, oxe, preview, stats
from molmoact2_jax.data.source import EpisodeSource

_log = logging.getLogger(__name__)


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("preview", description="Writes index.html, cameras.png and histograms.png.")
    dataset.add_arguments(parser)
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="where the page goes (default: out/preview/DATASET)"
    )
    parser.add_argument("--episodes", type=int, default=4, help="how many to show (default: 4)")
    parser.add_argument(
        "--stats", type=pathlib.Path, metavar="FILE", help="norm_stats.json (default: the dataset's own)"
    )
    parser.add_argument("--tag", metavar="NAME", help="robot in --stats (default: that of --as)")


def run(args: argparse.Namespace) -> int:
    """Opens the dataset, finds its statistics, writes the page."""
    source = dataset.open_source(args, args.dataset)
    tag, mode = _statistics(args, source)
    page = preview.write(source, args.out or pathlib.Path("out/preview", source.name), tag, mode, args.episodes)
    source.close()
    print(f"{source.name}: {source.num_episodes} episodes, {source.num_frames} frames; see {page}")
    return 0


def _statistics(args: argparse.Namespace, source: EpisodeSource) -> tuple[norm_stats.Tag, str]:
    if args.stats is not None:
        known = norm_stats.load(args.stats)
        return known.tag(args.tag or args.meaning or source.name), known.mode
    row = oxe.ROWS.get(args.meaning or "")
    known_tag = oxe.TAGS.get(row.tag if row else args.meaning or "", dataset.OWN)
    horizon = known_tag.horizon or max(1, round(source.fps))
    facts = norm_stats.Tag(
        horizon=horizon, setup=known_tag.setup, control=known_tag.control, normalize_gripper=known_tag.normalize_gripper
    )
    try:
        return stats.measure_sources([source], facts), "q01_q99"
    except ValueError as error:
        _log.warning("%s The page shows raw numbers.", error)
        return facts, "none"
