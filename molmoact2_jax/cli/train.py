"""`molmoact2 train`: trains or resumes a run."""

from __future__ import annotations

import logging
import sys
from typing import Any


def run(argv: list[str]) -> int:
    """Parses `--config=FILE --config.key=value [--changed]` and runs; returns the exit status."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, help_string="Recipe, a file of configs/.")
    flags.DEFINE_bool("changed", False, "Goes on although the configuration of run_dir differs.", flag_values=values)
    try:
        values(["molmoact2 train", *argv])
    except flags.Error as error:
        raise ValueError(f"train: {error}") from None
    if values["config"].value is None:
        raise ValueError("train: no --config, expected --config=FILE of configs/ or of your own.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    print(train(values["config"].value.to_dict(), changed=values["changed"].value))
    return 0


def train(table: dict[str, Any], *, changed: bool = False) -> str:
    """Trains the run that a table describes; returns why it ended."""
    import jax

    from molmoact2_jax.parallel import processes
    from molmoact2_jax.train import feed, loop, recipe, setup

    made = recipe.build(table)
    processes.start()
    prepared = setup.prepare(made)
    sides = feed.Sides.load(setup.side_directory(made), prepared.model)
    opened, held = feed.open_robots(made.data, sides)
    streams = {"robot": feed.robot_stream(prepared.model, made.data, sides, opened)}
    share = (jax.process_index(), jax.process_count())
    loader = feed.build_loader(prepared.model, made.data, made.batch_size, streams, share)
    del held
    try:
        return loop.Run(prepared, loader, feed.digest(streams), changed=changed).train()
    finally:
        loader.close()
