"""Reading a recipe and its overrides from the words of a command, shared by `train` and `plan`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


def parse(command: str, argv: list[str], define: Callable[[Any], None]) -> Any:
    """Parses `--config=FILE[:NAME] --config.key=value` and further flags.

    Args:
      command: its name, for errors.
      argv: the words behind it.
      define: adds the command's own flags to `absl.flags.FlagValues`.

    Returns:
      The flag values; `values["config"].value.to_dict()` is the table of the recipe.

    Raises:
      ValueError: a flag that does not exist, a key that the recipe lacks, or no recipe.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    words = [f"molmoact2 {command}", *argv]
    config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=words, help_string="Recipe, a file of configs/ or of your own."
    )
    define(values)
    try:
        values(words)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:  # what an override of a missing key raises
        raise ValueError(f"{command}: {' '.join(str(error).split())}") from None
    if values["config"].value is None:
        raise ValueError(f"{command}: no --config, expected --config=FILE of configs/ or of your own.")
    logging.getLogger("absl").setLevel(logging.WARNING)
    return values
