"""Arguments that name a robot dataset, and how the data commands open it."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.cli import meter
from molmoact2_jax.data import catalog, example, meanings, oxe, repack, table
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.text import tokenizer

OWN = oxe.Tag("own", 0, "", "")  # a LeRobot dataset whose columns have their usual names


def add_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the dataset and how to read it."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="directory of an RLDS, LeRobot or repacked dataset; PATH@0-9,12 takes some episodes",
        **many,
    )
    parser.add_argument(
        "--as",
        dest="meaning",
        metavar="NAME|FILE",
        help=f"what its columns mean: RLDS {', '.join(oxe.ROWS)}; LeRobot {', '.join(oxe.TAGS)}; or a JSON file with "
        "the fields of oxe.Row or oxe.Tag (default: one's own dataset with the usual names)",
    )
    parser.add_argument(
        "--quarantine", type=pathlib.Path, metavar="FILE", help="samples that nobody draws (JSON lines)"
    )
    parser.add_argument("--cache", type=pathlib.Path, metavar="DIR", help="for indices (default: beside the data)")


def open_source(args: argparse.Namespace, spec: str) -> EpisodeSource:
    """Opens one dataset, showing the progress of its first indexing.

    Raises:
      ValueError: it cannot be opened, its meaning is unknown, or its columns are not what the meaning says.
    """
    options = table.Options(quarantine=args.quarantine, cache=args.cache)
    described = meaning(args.meaning, spec)
    try:
        with meter.Meter(f"indexing {spec}", "parts") as progress:
            source = catalog.open_source(spec, described, options, progress=progress)
        for position in np.flatnonzero(source.episode_lengths)[:1].tolist():
            source.column("state", position), source.column("action", position)
    except ValueError as error:
        said = str(error).removeprefix(f"{spec}: ")
        foreign = args.meaning is None and any(words in said for words in ("no feature", "channels, expected"))
        hint = " These are the columns of `own`; describe the dataset's with --as FILE." if foreign else ""
        raise ValueError(f"{spec}: {said}{hint}") from error
    return source


def meaning(name: str | None, spec: str) -> oxe.Row | oxe.Tag | str | None:
    """Returns the row or tag that reads a dataset: by name, from a JSON file, or the usual one of its format."""
    if name is None:
        path, _ = catalog.parse(spec)
        return OWN if (pathlib.Path(path) / "meta" / "info.json").exists() else oxe.TEMPLATE
    if not name.endswith(".json"):
        return name
    return meanings.read(pathlib.Path(name))


def holds_records(spec: str) -> bool:
    """Says whether a directory is a multimodal set: JSON lines or Parquet files, and no robot dataset."""
    root = pathlib.Path(spec)
    robots = ("features.json", repack.MANIFEST, "meta/info.json")
    return any(any(root.glob(f"*.{kind}")) for kind in ("jsonl", "parquet")) and not any(
        (root / name).exists() for name in robots
    )


def encoding(checkpoint: pathlib.Path) -> example.Encoding:
    """Reads the tokenizer and the processor of a checkpoint."""
    cfg = config_json.load(checkpoint)
    text = tokenizer.Tokenizer.load(checkpoint)
    return example.Encoding(text, cfg.tokens, config_json.load_processor(checkpoint, cfg.vit))
