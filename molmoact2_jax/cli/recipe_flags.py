"""Reading a recipe and its overrides from the words of a command, shared by `train` and `plan`."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
import runpy
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any


def parse(command: str, argv: list[str], define: Callable[[Any], None]) -> Any:
    """Parses `--config=FILE[:NAME] --config.key=value` and further flags.

    Any field of `recipe.TrainConfig` can be set, whether the file mentions it or not.

    Args:
      command: its name, for errors.
      argv: the words behind it.
      define: adds the command's own flags to `absl.flags.FlagValues`.

    Returns:
      The flag values; `values["config"].value.to_dict()` is the table of the recipe.

    Raises:
      ValueError: a flag or key that does not exist, a value of another type, or no recipe.
    """
    from absl import flags
    from ml_collections import config_flags

    from molmoact2_jax.train import recipe

    values = flags.FlagValues()
    define(values)
    if {"-h", "--help"} & set(argv):
        print(_help(command, values))
        raise SystemExit(0)
    file, rest = _take_file(command, argv)
    table = _read(command, file)
    _add_defaults(table, recipe.TrainConfig)
    words = [f"molmoact2 {command}", *rest]
    try:
        config_flags.DEFINE_config_dict("config", table, flag_values=values, sys_argv=words)
        left = values(words)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:  # what a wrong override raises
        raise ValueError(f"{command}: {_explained(error)}") from None
    if left:
        raise ValueError(f"{command}: {' '.join(left)!r}, expected flags alone, such as --config.steps=100.")
    logging.getLogger("absl").setLevel(logging.ERROR)
    return values


def _help(command: str, values: Any) -> str:
    """Returns what --help shows: how to name a recipe, the fields it can set, and the command's own flags."""
    from molmoact2_jax.train import recipe

    names = ", ".join(field.name for field in dataclasses.fields(recipe.TrainConfig))
    return (
        f"usage: molmoact2 {command} --config=FILE[:NAME] [--config.KEY=VALUE ...] [FLAG ...]\n\n"
        "FILE is a recipe: one of configs/, whose first lines say what they need, or your own. Every field of it can\n"
        "be set: --config.steps=100 --config.loss.num_samples=4 '--config.data.robots[0].path=DIR'\n"
        f"fields: {names}\n(molmoact2_jax/train/recipe.py says what they mean)\n{values.get_help()}"
    )


def _take_file(command: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the recipe's file, and the words without it."""
    words, file = list(argv), None
    for i, word in enumerate(words):
        if word.startswith(("--config=", "-config=")):
            file = words.pop(i).partition("=")[2]
            break
        if word in ("--config", "-config") and i + 1 < len(words):
            _, file = words.pop(i), words.pop(i)
            break
    if not file:
        raise ValueError(f"{command}: no --config, expected --config=FILE of configs/ or of your own.")
    return file, words


def _read(command: str, spec: str) -> Any:
    """Returns what `get_config` of a file gives; FILE:NAME passes it a name."""
    path, colon, name = spec.partition(":")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{command}: --config: no file {path!r}, expected one of configs/ or of your own.")
    found = runpy.run_path(path).get("get_config")
    if found is None:
        raise ValueError(f"{command}: --config: {path} has no get_config(), which returns the table of a run.")
    return found(name) if colon else found()


def _add_defaults(table: Any, kind: type) -> None:
    """Adds the fields of a dataclass that a table leaves out, so that they too can be set by a flag."""
    from ml_collections import config_dict

    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            if field.name not in table:
                table[field.name] = config_dict.ConfigDict()
            _add_defaults(table[field.name], typing.cast(type, hint))
        elif field.name not in table and field.default is not dataclasses.MISSING:
            simple = [one for one in _alternatives(hint) if one in (str, int, float)]
            if field.default is not None:
                table[field.name] = field.default
            elif simple:
                table[field.name] = config_dict.placeholder(simple[0])


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _explained(error: Exception) -> str:
    """Returns an error of the flags in words; that of a key which does not exist is the key, and perhaps a near one."""
    if not isinstance(error, (AttributeError, KeyError)):
        return " ".join(str(error).split())
    text = str(error)  # quoted once or twice, with a suggestion on a second line
    key, near = re.search(r"\w+", text), re.search(r"Did you mean .*\?", text)
    return f"no key {key and key[0]!r} in a recipe. {near[0] if near else 'train/recipe.py lists them.'}"
