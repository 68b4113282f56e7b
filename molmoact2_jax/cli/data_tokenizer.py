"""`molmoact2 data tokenizer`: fits the action tokenizer to normalised chunks of datasets."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from molmoact2_jax.cli import dataset, meter
from molmoact2_jax.data import norm_stats, normalize, stats
from molmoact2_jax.data.source import EpisodeSource, SampleError
from molmoact2_jax.text import actions

HELD_OUT = 0.05  # part of the chunks that the fit does not see


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "tokenizer",
        description="Fits the action tokenizer to one-second chunks, as many from each dataset, normalised by --stats "
        "or by each dataset's own statistics.",
    )
    dataset.add_arguments(parser, several=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="the tokenizer, released format")
    parser.add_argument("--stats", type=pathlib.Path, metavar="FILE", help="norm_stats.json")
    parser.add_argument("--tag", metavar="NAME", help="robot in --stats")
    parser.add_argument("--chunks", type=int, default=100_000, help="in all (default: 100000)")
    parser.add_argument("--scale", type=float, default=10, help="levels per unit (default: 10)")
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of chunks")


def run(args: argparse.Namespace) -> int:
    """Draws chunks, fits, measures on chunks that were held out."""
    if args.stats is not None and not args.tag:
        raise ValueError("--tag: missing, expected the name of the robot in --stats.")
    rng = np.random.default_rng(args.seed)
    chunks: list[np.ndarray] = []
    for spec in args.dataset:
        chunks += _chunks(args, dataset.open_source(args, spec), rng, -(-args.chunks // len(args.dataset)))
    if len(chunks) < 2:
        raise ValueError(f"{args.dataset}: {len(chunks)} chunks, expected at least 2. Give datasets with more frames.")
    order = rng.permutation(len(chunks))
    held = max(1, round(HELD_OUT * len(chunks)))
    codec = actions.ActionCodec.fit([chunks[i] for i in order[held:]], scale=args.scale, vocab_size=args.vocab_size)
    codec.save(args.out)
    print(f"{args.out}: {codec.size} tokens from {len(chunks) - held} chunks")
    _measure(codec, [chunks[i] for i in order[:held]])
    return 0


def _chunks(args: argparse.Namespace, source: EpisodeSource, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Draws up to `count` chunks without repetition; those with damage are left out and counted."""
    if args.stats is not None:
        known = norm_stats.load(args.stats)
        tag, mode = known.tag(args.tag), known.mode
    else:
        tag, mode = stats.measure_sources([source], norm_stats.Tag(normalize_gripper=True)), "q01_q99"
    horizon = tag.horizon or max(1, round(source.fps))
    frames = rng.permutation(np.flatnonzero(source.valid))[:count]
    chunks, damaged = [], 0
    with meter.Meter(f"reading chunks of {source.name}", "chunks") as progress:
        for i, index in enumerate(frames.tolist()):
            try:
                chunk = source.chunk(*source.locate(index), horizon).actions
                chunks.append(normalize.normalize(normalize.to_model_joints(chunk, tag), tag.action, mode))
            except SampleError:
                damaged += 1
            progress(i + 1, len(frames))
    source.close()
    print(f"{source.name}: {len(chunks)} chunks of {horizon} steps" + (f", {damaged} damaged" if damaged else ""))
    return chunks


def _measure(codec: actions.ActionCodec, held: list[np.ndarray]) -> None:
    """Prints tokens per chunk, the largest error, and how many chunks the codec cannot write."""
    lengths, errors, lost = [], [], 0
    for chunk in held:
        if codec.losses(chunk[None])[0]:
            lost += 1
            continue
        tokens = codec.encode(chunk[None])
        decoded = codec.decode(tokens, *chunk.shape)[0]
        lengths.append(len(tokens[0]))
        errors.append(float(np.abs(decoded - chunk).max()))
    print(f"  {lost} of {len(held)} held-out chunks have levels that the fit never saw")
    if lengths:
        p50, p99 = np.percentile(lengths, (50, 99))
        print(f"  tokens per chunk: p50 {p50:.0f}, p99 {p99:.0f}; largest error {max(errors):.4f} of the range -1 to 1")
