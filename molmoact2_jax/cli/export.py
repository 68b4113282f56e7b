"""`molmoact2 export`: a checkpoint in the released safetensors format."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.checkpoint import hf, storage
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import llm
from molmoact2_jax.nn.params import Params


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "export", description="Writes a checkpoint, with its side files, as a directory in the released format."
    )
    parser.add_argument("checkpoint", help="run of ours, at an address too, or directory in the released format")
    parser.add_argument("--merge-lora", action="store_true", help="adds low-rank changes to the weights they adapt")
    parser.add_argument("--to", type=pathlib.Path, required=True, metavar="DIR", help="new or empty directory")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="casts the tensors (default: as they are)")


def run(args: argparse.Namespace) -> int:
    """Loads, checks, writes."""
    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise ValueError(f"--to: {args.to} holds something, expected a new or empty directory. Name another.")
    with jax.default_device(jax.devices("cpu")[0]):
        if (storage.path(args.checkpoint) / "model.json").is_file():
            cfg, params, sides = _run(args)
        else:
            sides = storage.local(args.checkpoint)
            cfg, params = hf.load(sides, args.dtype and jnp.dtype(args.dtype))
        hf.export(cfg, params, args.to, side_files=sides)
        print(f"logits of the written checkpoint: largest difference {_difference(cfg, params, args.to):.1e}")
    size = sum(path.stat().st_size for path in args.to.glob("*.safetensors"))
    print(f"{args.to}: {len(hf.released_shapes(cfg))} tensors, {size / 1e9:.3f} GB")
    return 0


def _run(args: argparse.Namespace) -> tuple[ModelConfig, Params, pathlib.Path]:
    from molmoact2_jax.checkpoint import runs  # needs the train extra

    adapted = bool((runs.read_recipe(args.checkpoint) or {}).get("lora"))
    if adapted and not args.merge_lora:
        raise ValueError(
            f"{args.checkpoint}: has low-rank changes, which the released format cannot hold: --merge-lora."
        )
    cfg, params = runs.load(args.checkpoint, jnp.dtype(args.dtype or "float32"))
    return cfg, params, runs.side_directory(args.checkpoint)


def _difference(cfg: ModelConfig, params: Params, directory: pathlib.Path) -> float:
    """Compares logits of a short text before writing and after reading back."""
    _, read = hf.load(directory)
    tokens = jnp.arange(16, dtype=jnp.int32)[None]
    where = llm.Where(llm.rotary(cfg.llm, tokens), jnp.tril(jnp.ones((1, 16, 16), bool)))

    @jax.jit
    def logits(tree: Params) -> jax.Array:
        x, _ = llm.forward(cfg.llm, tree, llm.embed(cfg.llm, tree, tokens), where)
        return llm.logits(cfg.llm, tree, x)

    return float(np.abs(np.asarray(logits(params["llm"])) - np.asarray(logits(read["llm"]))).max())
