"""`molmoact2 probe`: asks a policy server for actions, moves no robot, and says what it found."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from molmoact2_jax.cli import predict

if TYPE_CHECKING:
    from molmoact2_jax.serve.client import Client

KINDS = {"out_of_range": "out of range", "jumps": "jumps", "changed": "clamped", "state": "states out of range"}


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("probe", description="Checks a policy server without moving a robot.")
    parser.add_argument("url", help="ws://HOST:PORT or http://HOST:PORT")
    parser.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="holds the server's token")
    parser.add_argument("--calls", type=int, default=20, help="to time")
    parser.add_argument("--task", default="pick up the object", help="instruction in words")
    parser.add_argument(
        "--image", action="append", type=pathlib.Path, help="picture of a camera, repeated in their order (else noise)"
    )
    parser.add_argument("--state", nargs="+", help="joint state as in `predict` (else the middle of the ranges)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for each answer")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of the report")


def run(args: argparse.Namespace) -> int:
    """Connects, asks, and reports; 1 where something is wrong, with the reason."""
    from molmoact2_jax.serve import client

    if args.calls < 1:
        raise ValueError(f"--calls: {args.calls}, expected at least 1.")
    token = args.token_file.read_text().strip() if args.token_file else None
    try:
        with client.Client(args.url, token=token, timeout=args.timeout) as server:
            found = _examine(server, args)
    except (ConnectionError, client.ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if args.json else _report(found))
    for problem in found["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


def _examine(server: Client, args: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that was found out, as JSON values."""
    told = server.metadata
    if missing := [key for key in ("cameras", "state", "action", "n_action_steps", "rate_hz") if key not in told]:
        return {
            "url": server.url,
            "metadata": told,
            "problems": [f"metadata: no {', '.join(missing)}: another server?"],
        }
    images, state = _observation(told, args)
    answers, taken = [], []
    for seed in range(args.calls):
        begin = time.perf_counter()
        answers.append(server.act(images, args.task, state, seed=seed))
        taken.append(1e3 * (time.perf_counter() - begin))
    actions = np.stack([answer["actions"] for answer in answers])
    found = {
        "url": server.url,
        "metadata": told,
        "calls": args.calls,
        "round_trip_ms": _spread(taken),
        "server_ms": _spread([answer["latency_ms"] for answer in answers]),
        "chunk_ms": 1e3 * told["n_action_steps"] / told["rate_hz"],
        "predicted": {"low": actions.min(axis=(0, 1)).tolist(), "high": actions.max(axis=(0, 1)).tolist()},
        "guard": {kind: _sum([answer["guard"].get(kind, {}) for answer in answers]) for kind in KINDS},
    }
    return found | {"problems": _problems(found, actions, _accepts_nan(server, images, args.task, state))}


def _observation(told: dict[str, Any], args: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray | None]:
    if args.image:
        images = [np.asarray(Image.open(path).convert("RGB")) for path in args.image]
    else:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (224, 224, 3)).astype(np.uint8) for _ in told["cameras"]]
    if args.state:
        return images, predict.read_state(args.state)
    ends = zip(told["state"]["low"], told["state"]["high"], strict=True)
    middle = np.array([0 if low is None or high is None else (low + high) / 2 for low, high in ends], np.float32)
    return images, middle if middle.size else None


def _accepts_nan(server: Client, images: Sequence[np.ndarray], task: str, state: np.ndarray | None) -> bool:
    """Says whether the server predicts from a state that is not a number."""
    from molmoact2_jax.serve import client

    if state is None:
        return False
    try:
        server.act(images, task, np.full_like(state, np.nan))
    except client.ServerError:
        return False
    return True


def _spread(samples: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(samples, share)) for share in (50, 95, 99)}


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = sorted({name for each in counts for name in each})
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _problems(found: dict[str, Any], actions: np.ndarray, accepts_nan: bool) -> list[str]:
    told, problems = found["metadata"], []
    expected = (told["n_action_steps"], len(told["action"]["names"]))
    if actions.shape[1:] != expected:
        problems.append(f"actions: {list(actions.shape[1:])}, expected {list(expected)} from the metadata")
    if not np.isfinite(actions).all():
        problems.append("actions: not finite")
    if accepts_nan:
        problems.append("state: the server predicts from NaN, expected it to refuse")
    slow, chunk = found["round_trip_ms"]["p95"], found["chunk_ms"]
    if slow > chunk:
        problems.append(f"latency: p95 {slow:.0f} ms, expected less than the {chunk:.0f} ms that a chunk lasts")
    return problems


def _report(found: dict[str, Any]) -> str:
    told = found["metadata"]
    if "calls" not in found:
        return f"metadata   {json.dumps(told)[:300]}"
    weights, state = told["checkpoint"], told["state"]
    lines = [
        f"server     {told['server']} on {told['device']}",
        f"weights    {weights['name']}, {weights['dtype']}, digest {weights['digest'][:16]}",
        f"robot      {told['norm_tag']}: {told['setup']}, {told['control']}",
        f"cameras    {', '.join(told['cameras'])}",
        f"{'state':<24}{'low':>10}{'high':>10}",
        *(_row(name, low, high) for name, low, high in zip(state["names"], state["low"], state["high"], strict=True)),
        *_actions(found),
        *_timing(found),
        f"guard      {_guard(found['guard'])}",
    ]
    return "\n".join(lines)


def _actions(found: dict[str, Any]) -> list[str]:
    action, seen = found["metadata"]["action"], found["predicted"]
    heads = ("low", "high", "step", "seen from", "to")
    columns = (action["low"], action["high"], action["step"], seen["low"], seen["high"])
    rows = zip(action["names"], *columns, strict=True)
    return [f"{'action':<24}" + "".join(f"{head:>10}" for head in heads), *(_row(*row) for row in rows)]


def _row(name: str, *numbers: float | None) -> str:
    return f"  {name:<22}" + "".join(f"{'any' if n is None else format(n, '.4g'):>10}" for n in numbers)


def _timing(found: dict[str, Any]) -> list[str]:
    def words(spread: dict[str, float]) -> str:
        return ", ".join(f"{share} {value:.1f} ms" for share, value in spread.items())

    trip, chunk, told = found["round_trip_ms"], found["chunk_ms"], found["metadata"]
    still, ahead = 100 * trip["p50"] / (trip["p50"] + chunk), trip["p95"] * told["rate_hz"] / 1e3
    return [
        f"latency    {words(trip)}, of which server {words(found['server_ms'])}; {found['calls']} calls",
        f"chunk      {told['n_action_steps']} actions at {told['rate_hz']:g} Hz last {chunk:.0f} ms: a client that "
        f"waits stands still {still:.0f}% of the time, one that asks {ahead:.1f} actions ahead does not",
    ]


def _guard(counts: dict[str, dict[str, int]]) -> str:
    def words(counted: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counted.items()) or "none"

    return "; ".join(f"{told}: {words(counts[kind])}" for kind, told in KINDS.items())
