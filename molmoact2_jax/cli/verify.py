"""`molmoact2 verify`: compares every stage with recorded arrays of the released implementation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from molmoact2_jax.eval import golden, parity
from molmoact2_jax.serve import cache_dir

WIDTH = 72


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "verify",
        description="Computes every stage in float32 on the CPU and compares it with what the released implementation "
        "recorded. Exit status 1 where any array is outside its tolerance.",
    )
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory in the released format")
    parser.add_argument("golden", type=pathlib.Path, help="golden.npz, with its golden.json beside it")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Compares, shows each row as it is known, and what was recorded but not compared."""
    cache_dir.enable()
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        oracle = golden.Oracle(args.checkpoint, args.golden)
        rows = list(parity.rows(oracle)) if args.json else _shown(parity.rows(oracle))
    waiting = parity.unchecked(oracle, {row.name for row in rows})
    missed = [row.name for row in rows if not row.passed]
    print(_json(rows, waiting) if args.json else _summary(rows, waiting, missed))
    return 1 if missed else 0


def _shown(rows: Iterable[golden.Row]) -> list[golden.Row]:
    """Prints rows while they are computed."""
    print(f"{'array':<{WIDTH}} {'error':>9} {'at most':>9}")
    found = []
    for row in rows:
        limit = f"{row.tolerance:9.1e}" if row.tolerance else f"{'equal':>9}"
        print(
            f"{row.name:<{WIDTH}} {row.error:9.1e} {limit}  {'ok' if row.passed else 'MISS'}  {row.note}".rstrip(),
            flush=True,
        )
        found.append(row)
    return found


def _summary(rows: list[golden.Row], waiting: list[str], missed: list[str]) -> str:
    lines = [f"{name:<{WIDTH}} not yet" for name in waiting]
    lines.append(f"{len(rows)} arrays compared, {len(missed)} outside their tolerance, {len(waiting)} not yet compared")
    return "\n".join([*lines, *(f"MISS {name}" for name in missed)])


def _json(rows: list[golden.Row], waiting: list[str]) -> str:
    errors = (row.error if math.isfinite(row.error) else None for row in rows)  # JSON has no infinity
    found = [{**dataclasses.asdict(row), "error": e, "passed": row.passed} for row, e in zip(rows, errors, strict=True)]
    passed = all(row.passed for row in rows)
    return json.dumps({"rows": found, "not_yet": waiting, "passed": passed}, indent=1)
