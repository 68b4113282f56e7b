"""`molmoact2 bench infer`: how long an action call takes, phase by phase and as served."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from typing import Any

from molmoact2_jax import presets
from molmoact2_jax.cli import meter
from molmoact2_jax.eval import bench_infer, machine
from molmoact2_jax.nn import ops


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "infer",
        description="Times one action call: as served, in one program, and phase by phase, each phase compiled apart. "
        "Lists of horizons and depths are measured one after the other on the same weights.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("checkpoint", nargs="?", type=pathlib.Path, help="directory in the released format")
    what.add_argument("--preset", choices=sorted(presets.PRESETS), help="sizes with random weights, made on the device")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--cameras", type=int, default=2, help="pictures of a call (default: 2)")
    parser.add_argument(
        "--horizon", type=_integers, metavar="A[,A]", help="steps of a chunk (default: of the tag, or 10)"
    )
    parser.add_argument("--steps", type=int, default=10, help="evaluations of the flow (default: 10)")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="lengthen the prompt to this")
    parser.add_argument("--depth", type=_words, default=["off"], metavar="D[,D]", help="off, adaptive (default: off)")
    parser.add_argument("--changed", type=int, default=25, help="depth cells to predict, of 100 (default: 25)")
    parser.add_argument("--norm-tag", metavar="TAG", help="robot of the checkpoint (default: the first)")
    parser.add_argument("--iterations", type=int, default=100, help="measured calls (default: 100)")
    parser.add_argument("--warmup", type=int, default=5, help="calls before them (default: 5)")
    parser.add_argument("--layers", choices=("unrolled", "loop"), help="default: unrolled, except on a TPU")
    parser.add_argument("--attention", choices=sorted(ops.ATTENTION), help="how attention is computed")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write everything that was measured")


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def run(args: argparse.Namespace) -> int:
    """Measures every case and prints it as soon as it is known."""
    unroll = None if args.layers is None else args.layers == "unrolled"
    model = bench_infer.subject(args.preset or args.checkpoint, args.dtype, unroll=unroll, attention=args.attention)
    found: list[dict[str, Any]] = []
    for depth, horizon in itertools.product(args.depth, args.horizon or [None]):
        case = bench_infer.Case(
            cameras=args.cameras, horizon=horizon, num_steps=args.steps, prompt_tokens=args.prompt_tokens, depth=depth,
            changed=args.changed, norm_tag=args.norm_tag,
        )  # fmt: skip
        with meter.Meter("bench infer", "calls") as progress:
            found.append(bench_infer.measure(model, case, args.iterations, args.warmup, progress=progress))
        if len(found) == 1:
            print(machine.short(found[0]["machine"]), _model(found[0]["model"]), sep="\n")
        print("\n".join(lines(found[-1])), flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _model(facts: dict[str, Any]) -> str:
    kind = "random weights" if facts["random_weights"] else "a checkpoint"
    layers = "unrolled" if facts["unrolled"] else "a loop"
    return (
        f"{facts['name']}, {kind}, {facts['parameters'] / 1e6:.1f} M parameters in {facts['dtype']}, layers as "
        f"{layers}, attention {facts['attention']}, solver {facts['solver']}"
    )


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the table of one case."""
    case, memory = found["case"], found["memory"]
    text = [
        "",
        f"depth {case['depth']}, horizon {case['horizon']}, {case['num_steps']} steps, {case['cameras']} cameras of "
        f"{case['width']}x{case['height']}, prompt {case['prompt_tokens']} tokens in {case['bucket']}",
        f"{'ms':<24}{'min':>9}{'p50':>9}{'p95':>9}{'p99':>9}  compiled in",
    ]
    seconds = found["compile_seconds"]
    text += [_row(name, times, seconds.get(name)) for name, times in found["phases"].items()]
    text += [
        _row("sum of phases", found["sum_of_phases"], None),
        _row("call, one program", found["call"], seconds["call"]),
    ]
    if "depth" in found:
        text += [_row("call, right draft", found["call_settled"], None)]
    text += [_row("preprocess and call", found["request"], None)]
    if "depth" in found:
        depth = found["depth"]
        text += [
            f"{depth['changed']} cells in {depth['passes']} passes, {depth['passes_settled']} from the right draft"
        ]
    sizes = ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in memory.items() if name.endswith("bytes"))
    peak = f", device peak {memory['device_peak_gb']:.2f} GB" if "device_peak_gb" in memory else ""
    return [*text, f"program: {sizes.replace('_bytes', '')}; host {memory['host_gb']:.2f} GB{peak}"]


def _row(name: str, times: dict[str, float], seconds: float | None) -> str:
    columns = "".join(f"{times[column]:>9.2f}" for column in ("min", "p50", "p95", "p99"))
    return f"{name:<24}{columns}" + (f"{seconds:>10.1f} s" if seconds is not None else "")
