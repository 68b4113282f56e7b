"""`molmoact2 init`: the files of a small model that is going to be trained from nothing."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax

from molmoact2_jax.checkpoint import scratch
from molmoact2_jax.cli import dataset
from molmoact2_jax.data import norm_stats
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.models import molmoact2


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "init",
        description="Writes config.json, tokenizer, processor and statistics of a small model for the robots and the "
        "words of a dataset. A training run takes the directory as model.sizes and starts from random weights.",
    )
    dataset.add_arguments(parser)
    parser.add_argument("--to", type=pathlib.Path, required=True, metavar="DIR", help="receives the files")
    parser.add_argument("--stats", type=pathlib.Path, required=True, metavar="FILE", help="norm_stats.json of the data")
    parser.add_argument("--sizes", choices=sorted(scratch.SIZES), default="small", help="of the model (default: small)")


def run(args: argparse.Namespace) -> int:
    """Reads the instructions, writes the files, and says what they describe."""
    if (args.to / "config.json").exists():
        raise ValueError(f"--to: {args.to} holds a model already, expected another directory. Name a new one.")
    source = dataset.open_source(args, args.dataset)
    words = instructions(source)
    source.close()
    cfg = scratch.write(args.to, scratch.SIZES[args.sizes], norm_stats.load(args.stats), words)
    shapes, _ = molmoact2.abstract(cfg)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    print(
        f"{args.to}: {args.sizes}, {count / 1e6:.2f} M parameters, {cfg.llm.vocab_size} tokens for {len(words)} "
        f"instructions, chunks of {cfg.max_horizon} steps"
    )
    return 0


def instructions(source: EpisodeSource) -> list[str]:
    """Returns all instructions of the episodes' first frames, annotated ones included, sorted."""
    found: set[str] = set()
    for episode in range(source.num_episodes):
        if source.episode_lengths[episode]:
            found |= {*source.tasks(episode, 0), source.annotation(episode) or ""}
    return sorted(found - {""})
