"""`molmoact2 train`: trains or resumes a run."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import molmoact2_jax
from molmoact2_jax.cli import recipe_flags


def run(argv: list[str]) -> int:
    """Parses `--config=FILE --config.key=value [--changed]` and runs; returns the exit status.

    A run that a signal stopped has saved and ends with status 0, or with MOLMOACT2_PREEMPTED_EXIT where a scheduler
    must not take it for finished.
    """
    from absl import flags

    def define(values: flags.FlagValues) -> None:
        meaning = "Goes on although the configuration of run_dir differs."
        flags.DEFINE_bool("changed", False, meaning, flag_values=values)

    values = recipe_flags.parse("train", argv, define)
    _log_lines()
    reason = train(values["config"].value.to_dict(), changed=bool(values["changed"].value))
    print(reason)
    return 0 if reason == "finished" else int(os.environ.get("MOLMOACT2_PREEMPTED_EXIT", "0"))


def _log_lines() -> None:
    """Shows the lines of the run with the time of day: here they are what a person waits for, not details."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    ours = logging.getLogger(molmoact2_jax.__name__)
    ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))


def train(table: dict[str, Any], *, changed: bool = False) -> str:
    """Trains the run that a table describes; returns why it ended."""
    import jax

    from molmoact2_jax.checkpoint import storage
    from molmoact2_jax.parallel import processes
    from molmoact2_jax.serve import cache_dir
    from molmoact2_jax.train import feed, loop, recipe, setup

    made = recipe.build(table)
    storage.path(made.run_dir)  # refuses what cannot be written before anything is read or compiled
    cache_dir.enable()
    processes.start()
    prepared = setup.prepare(made)
    sides = feed.Sides.load(setup.side_directory(made), prepared.model)
    opened, held = feed.open_robots(made.data, sides)
    streams = feed.streams(prepared.model, made.data, sides, opened)
    loader = feed.build_loader(made.data, made.batch_size, streams, (jax.process_index(), jax.process_count()))
    try:
        evaluators = _evaluators(prepared, sides, held) if made.evaluate.every and held else []
        return loop.Run(prepared, loader, feed.digest(streams), evaluators, changed=changed).train()
    finally:
        loader.close()


def _evaluators(made: Any, sides: Any, held: Any) -> list[Any]:
    import jax

    from molmoact2_jax.eval import in_training
    from molmoact2_jax.serve import observe
    from molmoact2_jax.train import setup

    found: list[Any] = [in_training.ValidationLoss(made, sides, held)]
    if made.model.expert is not None and jax.process_count() == 1:
        host = observe.Host.load(setup.side_directory(made.recipe), made.model)
        found.append(in_training.OpenLoopError(made, host, held))
    return found
