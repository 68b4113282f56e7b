"""`molmoact2 data`: work on datasets, each command in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence

from molmoact2_jax.cli import main

COMMANDS: dict[str, main.Command] = {
    "stats": main.Command("data_stats", "exact statistics from columns; how a dataset fits a checkpoint"),
    "check": main.Command("data_check", "examines a dataset, writes what to quarantine"),
    "preview": main.Command("data_preview", "cameras, channels and prompts on one page"),
    "depth": main.Command("data_depth", "depth codes, buffers and update masks beside a LeRobot dataset"),
    "filter": main.Command("data_filter", "leaves out idle frames, short episodes, tasks"),
    "repack": main.Command("data_repack", "copies a dataset into ArrayRecord files of ready pictures"),
    "annotate": main.Command("data_annotate", "gives the episodes of a LeRobot dataset richer instructions"),
    "tokenizer": main.Command("data_tokenizer", "fits the action tokenizer to datasets"),
}


def run(argv: Sequence[str]) -> int:
    """Runs the command that `argv` starts with."""
    return main.dispatch(argv, COMMANDS, "molmoact2 data")
