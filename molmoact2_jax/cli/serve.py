"""`molmoact2 serve`: a policy server on one port, for openpi's websocket and MolmoAct2's HTTP."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import molmoact2_jax
from molmoact2_jax.cli import numbers

if TYPE_CHECKING:
    from molmoact2_jax.serve.http import State
    from molmoact2_jax.serve.server import Server
    from molmoact2_jax.serve.service import Service, Settings

REHEARSALS, REHEARSAL_SECONDS = 20, 5.0


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("serve", description="Serves a checkpoint to robots, over websocket and HTTP.")
    parser.add_argument("checkpoint", help="directory in the released format, or a run")
    parser.add_argument("--norm-tag", help="name of the robot (default: the only one of the checkpoint)")
    parser.add_argument(
        "--cameras", type=numbers.words, metavar="A,B", help="cameras in their order (default: all of the robot)"
    )
    _add_network(parser.add_argument_group("network"))
    _add_policy(parser.add_argument_group("policy; fixed while it runs, since each choice is compiled"))
    _add_limits(parser.add_argument_group("limits, from the checkpoint's statistics"))


def _add_network(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    group.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    group.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="holds the token that clients must show")
    group.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="until a call is given up")
    group.add_argument("--max-mb", type=int, default=64, help="of one request")
    group.add_argument("--batch", type=int, default=1, help="calls computed together where several wait; 1, 2, 4, ...")


def _add_policy(group: Any) -> None:
    group.add_argument("--mode", choices=("continuous", "discrete"), default="continuous")
    group.add_argument("--depth", choices=("off", "full", "adaptive"), default="off", help="Think checkpoints only")
    group.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    group.add_argument("--n-action-steps", type=int, help="actions per answer (default: the robot's)")
    group.add_argument("--max-task-tokens", type=int, default=64, help="longest instruction")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")


def _add_limits(group: Any) -> None:
    group.add_argument("--guard", choices=("off", "warn", "clamp"), default="clamp", help="of actions out of range")
    group.add_argument(
        "--state-guard", choices=("off", "warn", "refuse"), default="warn", help="of states out of range"
    )
    group.add_argument(
        "--state-margin", type=float, default=0.5, help="of the span from 1st to 99th percentile, before a state is out"
    )


def run(args: argparse.Namespace) -> int:
    """Listens, loads, compiles, says READY, and serves until SIGTERM or SIGINT."""
    from molmoact2_jax.serve import http, server

    state = http.State(_token(args.token_file), args.max_mb << 20)
    with _signals() as events:
        running = server.Server(state, args.host, args.port)
        _say(f"listening  {running.url}, 503 until READY{_openness(args)}")
        loader = threading.Thread(target=_load, args=(events, running, args), name="loader", daemon=True)
        try:
            loader.start()
            event = _next(events)
            if isinstance(event, BaseException):
                raise event
            _say(f"ending     {event}: finishing what has begun")
        finally:
            drained = running.stop()
    calls = state.service.calls if state.service else 0
    _say(f"ended      after {calls} calls{'' if drained else '; some were given up'}")
    status = 0 if drained else 1
    if loader.is_alive():
        os._exit(status)  # requests are finished, and a compilation cannot be interrupted
    return status


def _say(line: str) -> None:
    print(line, flush=True)


def _token(path: pathlib.Path | None) -> str | None:
    if path is None:
        return None
    token = path.read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"--token-file: {path} holds no word, expected a token of printable ASCII.")
    return token


def _openness(args: argparse.Namespace) -> str:
    if args.token_file or args.host in ("127.0.0.1", "::1", "localhost"):
        return ""
    return "; anyone who reaches this address can ask, --token-file keeps others out"


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[str | BaseException]]:
    """Yields a queue of the names of SIGTERM and SIGINT as they come, which is safe to fill from a handler.

    An exception raised by a handler may be swallowed by whatever library it happens to interrupt.
    """
    events: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    note = lambda number, frame: events.put(signal.Signals(number).name)  # noqa: E731
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(events: queue.SimpleQueue[str | BaseException]) -> str | BaseException:
    while True:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.2)  # a signal that another thread took does not wake this one


def _load(events: queue.SimpleQueue[str | BaseException], running: Server, args: argparse.Namespace) -> None:
    """Loads, lets requests in and says READY; puts what goes wrong among the events."""
    try:
        _open(running.state, args)
        _say(f"READY      {running.url}  {_rehearsed(running.state.ready())}")
    except BaseException as error:
        events.put(error)


def _open(state: State, args: argparse.Namespace) -> None:
    """Loads and compiles, then lets requests in."""
    from molmoact2_jax.serve import metadata, service

    state.loading, begin = "is loading the checkpoint", time.perf_counter()
    policy = molmoact2_jax.Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    made = service.Service(policy, _settings(policy, args))
    loaded = time.perf_counter()
    told = metadata.of(made, pathlib.PurePath(args.checkpoint).name, metadata.fingerprint(policy.cfg, policy.params))
    _say(f"loaded     {told['checkpoint']['name']} as {args.dtype} on {told['device']} in {loaded - begin:.1f} s")
    state.loading = "is compiling"
    count, most = made.warm(), args.max_task_tokens
    seconds = time.perf_counter() - loaded
    _say(f"compiled   {count} programs in {seconds:.1f} s, for instructions of up to {most} tokens")
    _say(_robot(told))
    state.open(made, told)


def _settings(policy: molmoact2_jax.Policy, args: argparse.Namespace) -> Settings:
    from molmoact2_jax.serve import guard, service

    tags = sorted(policy.host.robots.tags)
    if args.norm_tag is None and len(tags) != 1:
        raise ValueError(f"--norm-tag: missing, expected one of {tags}: the checkpoint knows several robots.")
    name = args.norm_tag or tags[0]
    cameras = args.cameras or policy.host.tag(name).cameras
    if not cameras:
        raise ValueError(
            f"--cameras: missing, expected names: the statistics of {name!r} list none. Name them in order."
        )
    return service.Settings(
        norm_tag=name,
        cameras=tuple(cameras),
        mode=args.mode,
        depth=args.depth,
        num_steps=args.num_steps,
        n_action_steps=args.n_action_steps,
        max_task_tokens=args.max_task_tokens,
        most_together=args.batch,
        timeout_s=args.timeout,
        checks=guard.Options(args.guard, args.state_guard, args.state_margin),
    )


def _robot(told: dict[str, Any]) -> str:
    state, action, chosen = told["state"]["names"], told["action"]["names"], told["guard"]
    steps = (
        "" if chosen["step_source"] != "range" else ", changes bounded by the range alone: no max_step in norm_stats"
    )
    return (
        f"robot      {told['norm_tag']}: cameras {', '.join(told['cameras'])}; {len(state)} states; "
        f"{told['n_action_steps']} of {told['horizon']} steps of {len(action)} actions at {told['rate_hz']:g} Hz "
        f"({told['rate_source']})\n"
        f"guard      actions {chosen['actions']}{steps}; states {chosen['states']}"
    )


def _rehearsed(service: Service) -> str:
    taken, failed = service.rehearse(REHEARSALS, REHEARSAL_SECONDS)
    p50, p95 = np.percentile(taken, (50, 95))
    note = f", {failed} of which gave no actions from black pictures" if failed else ""
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms over {len(taken)} calls{note}"
