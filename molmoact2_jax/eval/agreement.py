"""Holds an accelerator's results, and the processor's beside them, against those of the released implementation."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.eval import golden, parity
from molmoact2_jax.serve.policy import Policy

SLACK = 10  # an accelerator adds in another order than the processor, for which the tolerances of the rows are
COARSE = 0.1  # of the largest value: bfloat16 has 8 bits, and ten steps of the flow carry their roundings on


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One recorded array on several devices.

    Attributes:
      name: of the array; those in bfloat16 start with the dtype.
      errors: of each device by its platform, over the largest recorded value; or how many entries differ.
      tolerances: what they may be.
    """

    name: str
    errors: dict[str, float]
    tolerances: dict[str, float]

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerances[device] for device, error in self.errors.items())


def compare(
    checkpoint: str | pathlib.Path, archive: str | pathlib.Path, devices: Sequence[Any], cases: int | None = None
) -> list[Agreement]:
    """Computes everything recorded on each device at once, in float32; action chunks in bfloat16 too.

    Args:
      checkpoint: directory in the released format.
      archive: the arrays recorded with it.
      devices: one of each platform; the tolerances of the rows are the processor's, others have `SLACK` times those.
      cases: how many cases, without training and the rest; None takes everything.

    Raises:
      FileNotFoundError, ValueError: checkpoint or archive is absent or damaged.
    """
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        found = list(pool.map(lambda device: _rows(checkpoint, archive, device, cases), devices))
    tables = {device.platform: {row.name: row for row in rows} for device, rows in zip(devices, found, strict=True)}
    names = list(dict.fromkeys(row.name for rows in found for row in rows))
    return [_agreement(name, tables) for name in names]


def _agreement(name: str, tables: Mapping[str, Mapping[str, golden.Row]]) -> Agreement:
    """Joins what the devices have of an array; one that a device could not compute is infinitely far off there."""
    absent = golden.Row(name, math.inf, 0.0)
    rows = {platform: table.get(name, absent) for platform, table in tables.items()}
    tolerances = {platform: _tolerance(row, platform) for platform, row in rows.items()}
    return Agreement(name, {platform: row.error for platform, row in rows.items()}, tolerances)


def _tolerance(row: golden.Row, platform: str) -> float:
    return row.tolerance * (1 if platform == "cpu" or row.tolerance == COARSE else SLACK)


def _rows(checkpoint: Any, archive: Any, device: Any, cases: int | None) -> list[golden.Row]:
    with jax.default_device(device):
        oracle = golden.Oracle(checkpoint, archive, unroll=False)
        coarse = list(_coarse(oracle, len(oracle.cases) if cases is None else cases))
        with jax.default_matmul_precision("highest"):
            if cases is None:
                return [*parity.rows(oracle), *coarse]
            return [row for index in range(cases) for row in parity.case_rows(oracle, index)] + coarse


def _coarse(oracle: golden.Oracle, cases: int) -> Iterator[golden.Row]:
    """Yields the chunks of the plain continuous mode in bfloat16."""
    half = Policy(oracle.host, jax.tree.map(lambda w: w.astype(jnp.bfloat16), oracle.params), unroll=False)
    for index in range(cases if oracle.cfg.expert else 0):
        noise = oracle.arrays[f"case{index}/noise"][0]
        out = half.predict_actions([oracle.observation(index)], noise=[noise])[0]
        row = oracle.check(f"case{index}/trajectory", out.trajectory, COARSE)
        yield dataclasses.replace(row, name=f"bfloat16/{row.name}")
