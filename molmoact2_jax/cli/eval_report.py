"""`molmoact2 eval report`: one page of what training and evaluation found."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.eval import report
from molmoact2_jax.eval.report_inputs import Places

PLACES = {
    "run": ("DIR", "of molmoact2 train, an address too: losses and validation"),
    "rollout": ("DIR", "of eval rollout: success, pictures"),
    "control": ("DIR", "of eval rollout --swap: the same with swapped instructions"),
    "random": ("DIR", "of eval rollout --random-weights: the same untrained"),
    "open-loop": ("DIR", "of eval open-loop --plots: predicted against recorded actions"),
    "timings": ("FILE", "of molmoact2_jax.eval.timings: time and memory of each part"),
}


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "report",
        description="Writes one HTML page, which needs no other file, from files that other commands wrote. A part "
        "whose file is not given is named in the page with the command that makes it.",
    )
    for name, (metavar, words) in PLACES.items():
        kind = str if name == "run" else pathlib.Path  # a path would shorten the slashes of an address
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=words)
    parser.add_argument("--title", default="", help="of the page (default: names the simulator)")
    parser.add_argument("--to", type=pathlib.Path, metavar="FILE", default=pathlib.Path("report.html"))
    parser.add_argument("--json", action="store_true", help="prints which parts there are instead of words")


def run(args: argparse.Namespace) -> int:
    """Writes the page and says what it lacks."""
    places = Places(**{name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in PLACES})
    made = report.build(places, args.title)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(made.html, encoding="utf-8")
    found = report.summary(made, places)
    print(json.dumps(found | {"to": str(args.to)}) if args.json else words(found, args.to))
    return 0


def words(found: Mapping[str, Any], path: pathlib.Path) -> str:
    """Returns where the page is, and a line for each part that it lacks."""
    lines = [f"{path}: {found['bytes'] / 1e6:.1f} MB"]
    return "\n".join([*lines, *(f"missing {name}: {command}" for name, command in found["missing"].items())])
