"""`molmoact2 data annotate`: richer instructions for the episodes of a LeRobot dataset, through a file to edit."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from molmoact2_jax.cli import dataset
from molmoact2_jax.data import catalog, instructions


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "annotate",
        description="--list writes the instruction of every episode, one JSON object a line; edit them, by hand or "
        "with a model, and --apply writes them beside the originals. Training reads them where it is told to.",
    )
    dataset.add_arguments(parser)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", type=pathlib.Path, metavar="FILE", help="JSON lines to write")
    action.add_argument("--apply", type=pathlib.Path, metavar="FILE", help="JSON lines to read")


def run(args: argparse.Namespace) -> int:
    """Lists or applies."""
    if args.apply is not None:
        root, _ = catalog.parse(args.dataset)
        texts = instructions.parse(args.apply)
        print(f"{instructions.write(root, texts)}: {len(texts)} instructions, {len(set(texts.values()))} different")
        return 0
    source = dataset.open_source(args, args.dataset)
    with args.list.open("w", encoding="utf-8") as file:
        for position, number in enumerate(source.episode_ids.tolist()):
            if source.episode_lengths[position]:
                text = source.annotation(position) or source.task(position, 0)
                file.write(json.dumps({"episode_index": number, "task": text}, ensure_ascii=False) + "\n")
    source.close()
    print(f"{args.list}: instructions of {source.num_episodes} episodes")
    return 0
