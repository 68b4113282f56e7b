"""The files that a report is made of: read, checked against each other, or known to be missing."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.checkpoint import storage
from molmoact2_jax.eval import timings

Json = Mapping[str, Any]

SAME = ("executed", "horizon", "seeds", "noise_seed", "norm_tag", "env", "options")  # of protocols that are compared


@dataclasses.dataclass(frozen=True)
class Places:
    """Where commands left their results; None, or a place without the file, leaves a part of the report out.

    Attributes:
      run: `run_dir` of `molmoact2 train`, a directory or an address.
      rollout: directory of `molmoact2 eval rollout`.
      control: the same with swapped instructions.
      random: the same with random weights.
      open_loop: directory of `molmoact2 eval open-loop --plots`.
      timings: file of `eval.timings`.
    """

    run: str | pathlib.Path | None = None
    rollout: pathlib.Path | None = None
    control: pathlib.Path | None = None
    random: pathlib.Path | None = None
    open_loop: pathlib.Path | None = None
    timings: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What the files hold; None where there is no file.

    Attributes:
      metrics: lines of metrics.jsonl.
      rollout, control, random: of rollout.json.
      open_loop: of open_loop.json.
      timings: {part: seconds, peak_bytes, runs}.
    """

    metrics: list[Json] | None
    rollout: Json | None
    control: Json | None
    random: Json | None
    open_loop: Json | None
    timings: Mapping[str, Mapping[str, float]] | None


def read(places: Places) -> Found:
    """Reads what is there.

    Raises:
      ValueError: a file of another kind, a control that is none, or results that cannot be compared.
    """
    rollout = _result(places.rollout, "rollout.json", "rollout")
    control = _result(places.control, "rollout.json", "rollout")
    random = _result(places.random, "rollout.json", "rollout")
    if rollout and (rollout["protocol"]["instructions"] or rollout["policy"]["random_weights"] is not None):
        raise ValueError(
            f"--rollout {places.rollout}: a control, expected the policy itself. Give the other directory."
        )
    if control and not control["protocol"]["instructions"]:
        raise ValueError(
            f"--control {places.control}: tasks had their own instructions, expected others. "
            "Roll out with --swap TASK,TASK."
        )
    if random and random["policy"]["random_weights"] is None:
        raise ValueError(f"--random {places.random}: trained weights. Roll out with --random-weights SEED.")
    return Found(
        metrics=_metrics(places.run),
        rollout=rollout,
        control=control,
        random=random,
        open_loop=_result(places.open_loop, "open_loop.json", "open_loop"),
        timings=timings.read(places.timings) if places.timings and places.timings.is_file() else None,
    )


def differences(one: Json, other: Json) -> list[str]:
    """Lists where the protocols of two rollouts differ although a reader compares their numbers."""
    pairs = [(key, one["protocol"].get(key), other["protocol"].get(key)) for key in SAME]
    pairs += [(key, one["policy"].get(key), other["policy"].get(key)) for key in ("num_steps", "dtype")]
    if other["policy"]["random_weights"] is None:
        pairs.append(("checkpoint", one["policy"].get("digest"), other["policy"].get("digest")))
    return [f"{key}: {a} and {b}" for key, a, b in pairs if a != b]


def _result(directory: pathlib.Path | None, name: str, kind: str) -> Json | None:
    if directory is None or not (directory / name).is_file():
        return None
    found = json.loads((directory / name).read_text("utf-8"))
    if found.get("kind") != kind:
        raise ValueError(
            f"{directory / name}: of kind {found.get('kind')!r}, expected {kind!r}. Give another directory."
        )
    return found


def _metrics(run: str | pathlib.Path | None) -> list[Json] | None:
    path = None if run is None else storage.path(run) / "metrics.jsonl"
    if path is None or not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    if not any("loss" in line for line in lines):
        raise ValueError(f"{path}: no loss in {len(lines)} lines, expected those of a training run. Train some steps.")
    return lines
