"""`molmoact2 export`: a checkpoint in the released safetensors format."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.checkpoint import hf


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "export", description="Writes a checkpoint, with its side files, as a directory in the released format."
    )
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory in the released format")
    parser.add_argument("--to", type=pathlib.Path, required=True, metavar="DIR", help="new or empty directory")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="casts the tensors (default: as they are)")


def run(args: argparse.Namespace) -> int:
    """Loads, checks, writes."""
    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise ValueError(f"--to: {args.to} holds something, expected a new or empty directory. Name another.")
    with jax.default_device(jax.devices("cpu")[0]):
        cfg, params = hf.load(args.checkpoint, args.dtype and jnp.dtype(args.dtype))
        hf.export(cfg, params, args.to, side_files=args.checkpoint)
    size = sum(path.stat().st_size for path in args.to.glob("*.safetensors"))
    print(f"{args.to}: {len(hf.released_shapes(cfg))} tensors, {size / 1e9:.3f} GB")
    return 0
