"""`molmoact2 bench train`: how long a training step takes, and what share of the device's arithmetic it uses."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from typing import Any

from molmoact2_jax import presets
from molmoact2_jax.cli import meter
from molmoact2_jax.eval import bench_train, machine
from molmoact2_jax.nn import ops
from molmoact2_jax.train import losses, memory, recipe

GB = 1e9


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "train",
        description="Times whole training steps on packed rows of made-up examples and random weights, for every "
        "batch, policy of rematerialisation and kind of attention given.",
    )
    parser.add_argument("--preset", choices=sorted(presets.PRESETS), default="4b", help="sizes (default: 4b)")
    parser.add_argument("--rows", type=_integers, default=[1], metavar="B[,B]", help="of the global batch (default: 1)")
    parser.add_argument("--remat", type=_words, default=["full"], metavar="R[,R]", help=f"{', '.join(losses.REMAT)}")
    parser.add_argument("--attention", type=_words, default=["matmul"], metavar="A[,A]", help=", ".join(ops.ATTENTION))
    parser.add_argument("--mode", choices=memory.MODES, default="full", help="what is trained (default: full)")
    parser.add_argument("--tokens", type=int, default=2100, help="of a row (default: 2100)")
    parser.add_argument("--samples", type=int, default=8, help="flow samples of a chunk, K (default: 8)")
    parser.add_argument("--crops", type=int, default=8, help="pictures of a row (default: 8)")
    parser.add_argument("--chunks", type=int, default=5, help="action chunks of a row (default: 5)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the recipe, as JSON: loss.dropout=0"
    )
    parser.add_argument("--iterations", type=int, default=10, help="measured steps (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: 2)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write everything that was measured")


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def run(args: argparse.Namespace) -> int:
    """Measures every trial and prints it as soon as it is known; exit status 1 where none of them fits."""
    base = bench_train.base(args.preset, tokens=args.tokens, samples=args.samples, crops=args.crops, chunks=args.chunks)
    chosen = memory.mode(recipe.build(with_values(recipe.to_json(base), args.set)), args.mode)
    points = itertools.product(args.attention, args.remat, args.rows)
    trials = [bench_train.Trial(rows, remat, attention) for attention, remat, rows in points]
    found: list[dict[str, Any]] = []

    def progress(trial: bench_train.Trial) -> meter.Meter:
        return meter.Meter(f"bench train, {trial.rows} rows, remat {trial.remat}", "steps")

    for one in bench_train.sweep(chosen, trials, args.iterations, args.warmup, progress=progress):
        if not found:
            print(machine.short(one["machine"]), _heading(one), sep="\n")
        found.append(one)
        print(line(one), flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if any("step" in one for one in found) else 1


def with_values(table: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Returns a recipe with some of its fields replaced.

    Raises:
      ValueError: an assignment without a value, of no JSON value, or into something that has no fields.
    """
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        *parents, last = name.split(".")
        node: Any = table
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not sign or not isinstance(node, dict):
            raise ValueError(f"--set: {assignment!r}, expected KEY=VALUE with the path of a field, as loss.dropout=0.")
        try:
            node[last] = json.loads(text)
        except json.JSONDecodeError:
            node[last] = text
    return table


def _heading(found: dict[str, Any]) -> str:
    model, row = found["model"], found["row"]
    return (
        f"{model['sizes']}, {model['parameters'] / 1e6:.1f} M parameters, {model['trained'] / 1e6:.1f} M trained, "
        f"{model['dtype']}; rows of {row['tokens']} tokens, {row['crops']} crops, {row['chunks']} chunks, "
        f"K={row['samples']}, horizon {row['horizon']}\n"
        f"{'rows':>5} {'remat':>6} {'attention':>10} {'p50 ms':>9} {'p95 ms':>9} {'tokens/s':>10} {'TFLOP/s':>8} "
        f"{'MFU':>6} {'peak GB':>8} {'compiled':>9} {'planned':>8}  compiled in"
    )


def line(found: dict[str, Any]) -> str:
    """Returns the row of the table of one trial; rates and bytes are per device."""
    trial, compiled = found["trial"], found.get("compiled")
    where = f"{trial['rows']:>5} {trial['remat']:>6} {trial['attention']:>10} "
    total, seconds = ("-", "-") if compiled is None else (f"{compiled['total'] / GB:.2f}", f"{compiled['seconds']:.1f}")
    sizes = f"{total:>9} {found['planned']['total'] / GB:>8.2f}{seconds:>11} s"
    if "not" in found:
        return f"{where}{sizes}  not run: {found['not']}"
    mfu = f"{found['mfu']:>6.1%}" if "mfu" in found else f"{'-':>6}"
    peak = f"{found['peak_bytes'] / GB:>8.2f}" if found["peak_bytes"] else f"{'-':>8}"
    return (
        f"{where}{found['step']['p50']:>9.1f} {found['step']['p95']:>9.1f} "
        f"{found['tokens_per_second_per_device']:>10.0f} {found['model_tflops_per_device']:>8.3f} {mfu} {peak} {sizes}"
    )
