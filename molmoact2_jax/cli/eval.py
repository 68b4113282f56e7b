"""`molmoact2 eval`: measures a checkpoint, each way in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence

from molmoact2_jax.cli import main

COMMANDS: dict[str, main.Command] = {
    "rollout": main.Command("eval_rollout", "closed loop in a simulator: success with its confidence interval"),
    "open-loop": main.Command("eval_open_loop", "predicted against recorded actions, in the robot's units"),
    "report": main.Command("eval_report", "one page of what training and evaluation found"),
}


def run(argv: Sequence[str]) -> int:
    """Runs the command that `argv` starts with."""
    return main.dispatch(argv, COMMANDS, "molmoact2 eval")
