"""`molmoact2 bench`: times, each benchmark in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence

from molmoact2_jax.cli import main

COMMANDS: dict[str, main.Command] = {
    "infer": main.Command("bench_infer", "an action call, phase by phase and as served"),
    "train": main.Command("bench_train", "a training step, by batch and rematerialisation"),
    "check": main.Command("bench_check", "whether a device computes what the processor and the released model compute"),
    "data": main.Command("bench_data", "reading, decoding, resizing, tokenising, packing, per core"),
}


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark that `argv` starts with."""
    return main.dispatch(argv, COMMANDS, "molmoact2 bench")
