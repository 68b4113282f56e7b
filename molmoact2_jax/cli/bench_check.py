"""`molmoact2 bench check`: whether an accelerator computes what the processor and the released model compute."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax

from molmoact2_jax.cli import meter
from molmoact2_jax.eval import agreement, machine

WIDTH = 64


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "check",
        description="Computes every stage on the default device and on the processor, and shows how far each is from "
        "what the released implementation recorded. Exit status 1 where any array is outside its tolerance.",
    )
    parser.add_argument("archives", nargs="+", type=pathlib.Path, help="directories of a checkpoint with golden.npz")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first cases, without training")
    parser.add_argument("--all", action="store_true", help="prints every array, not the worst of each archive")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write every array that was compared")


def run(args: argparse.Namespace) -> int:
    """Compares archive after archive; exit status 1 where any array is outside its tolerance."""
    devices = list({device.platform: device for device in (jax.devices()[0], jax.devices("cpu")[0])}.values())
    about = machine.describe()
    print(machine.short(about))
    found: list[dict[str, Any]] = []
    with meter.Meter("bench check", "archives") as progress:
        for path in args.archives:
            rows = agreement.compare(path, path / "golden.npz", devices, args.cases)
            found.append({"archive": path.name, "machine": about, "arrays": [_values(row) for row in rows]})
            progress(len(found), len(args.archives))
            print("\n".join(lines(path.name, rows, every=args.all)), flush=True)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(array["passed"] for one in found for array in one["arrays"]) else 1


def _values(row: agreement.Agreement) -> dict[str, Any]:
    """Returns JSON values, which have no infinity."""
    errors = {device: error if math.isfinite(error) else None for device, error in row.errors.items()}
    return {**dataclasses.asdict(row), "errors": errors, "passed": row.passed}


def lines(name: str, rows: list[agreement.Agreement], *, every: bool) -> list[str]:
    """Returns the table of an archive: every array, or those that miss and the worst of the others."""
    devices = list(rows[0].errors)
    missed = [row for row in rows if not row.passed]
    shown = rows if every else [*missed, *_worst([row for row in rows if row.passed])]
    text = ["", f"{name + ', error over the largest value':<{WIDTH}}" + "".join(f"{d:>10}" for d in devices)]
    for row in shown:
        errors = "".join(f"{row.errors[device]:>10.1e}" for device in devices)
        text.append(f"{row.name:<{WIDTH}}{errors}  {'ok' if row.passed else 'MISS'}")
    return [*text, f"{len(rows)} arrays compared, {len(missed)} outside their tolerance"]


def _worst(rows: list[agreement.Agreement]) -> list[agreement.Agreement]:
    """Returns the arrays nearest to their tolerance, of those that need not be equal to the bit."""
    share = {row.name: max(e / (row.tolerances[d] or math.inf) for d, e in row.errors.items()) for row in rows}
    return sorted(rows, key=lambda row: -share[row.name])[:5]
