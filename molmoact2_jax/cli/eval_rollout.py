"""`molmoact2 eval rollout`: a checkpoint in a simulator."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from molmoact2_jax.cli import meter, numbers
from molmoact2_jax.envs import registry
from molmoact2_jax.eval import rollout, scorecard
from molmoact2_jax.serve.policy import Policy


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser("rollout", description="Runs episodes of a simulator with a checkpoint.")
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory in the released format, or a run")
    parser.add_argument("--env", default="metaworld", help=f"{', '.join(registry.ADAPTERS)}, or package.module:Class")
    parser.add_argument("--tasks", required=True, type=numbers.words, help="names, with commas between them")
    parser.add_argument(
        "--seeds", default="5000-5019", type=numbers.ranges, help="of the episodes of each task (default 5000-5019)"
    )
    parser.add_argument("--norm-tag", required=True, help="name of the robot in the checkpoint's norm_stats.json")
    parser.add_argument("--executed", type=int, help="actions of a plan before the next (default: the tag's)")
    parser.add_argument("--horizon", type=int, help="decisions after which an episode has failed (default: the task's)")
    parser.add_argument(
        "--instruct",
        action="append",
        default=[],
        metavar="TASK=OTHER",
        help="tells the policy the instruction of another task, or these words; a control",
    )
    parser.add_argument("--random-weights", action="store_true", help="another control: the same model untrained")
    parser.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    parser.add_argument("--noise-seed", type=int, default=0, help="of the noise that plans start from")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument("--envs", type=int, default=12, help="episodes at the same time (default 12)")
    parser.add_argument("--processes", type=int, default=2, help="that run the simulators; 0 runs them here")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="of the simulator")
    parser.add_argument("--film", type=numbers.ranges, default=(), metavar="SEEDS", help="keeps these pictures")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="for rollout.json and films")
    parser.add_argument("--json", action="store_true", help="prints the result file instead of a table")


def run(args: argparse.Namespace) -> int:
    """Runs the protocol, writes the result, shows a table."""
    registry.require_tasks(args.env, args.tasks)
    policy = Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    if args.random_weights:
        policy = scorecard.untrained(policy, args.dtype)
    protocol = _protocol(args, policy)
    with meter.Meter("rollout", "episodes") as progress:
        done = rollout.run(protocol, _planner(args, policy, protocol), lambda n, total, _: progress(n, total))
    facts = dict(
        checkpoint=str(args.checkpoint),
        random_weights=args.random_weights,
        dtype=args.dtype,
        num_steps=args.num_steps or policy.cfg.flow.num_steps,
    )
    result = scorecard.result(protocol, done, facts)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "rollout.json").write_text(json.dumps(result, indent=1))
        scorecard.save_films(done, args.out, fps=result["environment"]["fps"])
    print(json.dumps(result) if args.json else table(result))
    return 0


def _protocol(args: argparse.Namespace, policy: Policy) -> rollout.Protocol:
    tag, options = policy.host.tag(args.norm_tag), dict(map(_option, args.option))
    env = registry.open_environment(args.env, args.tasks[0], **options)
    env.close()
    executed = args.executed or tag.n_action_steps or policy.host.horizon(tag)
    return rollout.Protocol(
        env=args.env,
        tasks=args.tasks,
        seeds=args.seeds,
        norm_tag=args.norm_tag,
        executed=executed,
        cameras=scorecard.fit(tag, args.norm_tag, env.spec, executed),
        horizon=args.horizon,
        instructions=_instructions(args.instruct, registry.adapter(args.env).instructions()),
        noise_seed=args.noise_seed,
        num_envs=min(args.envs, len(args.tasks) * len(args.seeds)),
        num_processes=args.processes,
        options=options,
        filmed=args.film,
    )


def _planner(args: argparse.Namespace, policy: Policy, protocol: rollout.Protocol) -> rollout.Planner:
    options = {} if args.num_steps is None else {"num_steps": args.num_steps}
    return scorecard.planner(policy, protocol.executed, **options)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option: {text!r}, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _instructions(given: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Reads TASK=OTHER: the words told for TASK are those of the task OTHER, or OTHER itself."""
    told = {}
    for text in given:
        task, equals, other = text.partition("=")
        if not equals or task not in known:
            raise ValueError(f"--instruct: {text!r}, expected TASK=OTHER with one of the simulator's tasks.")
        told[task] = known.get(other, other)
    return told


def table(result: Mapping[str, Any]) -> str:
    """Returns success by task and in all, as text."""
    width = max(map(len, [*result["tasks"], "all"]))
    lines = [f"{'task':<{width}}  success  rate  95% interval  decisions"]
    for name, share in [*result["tasks"].items(), ("all", result["success"])]:
        count = f"{share['successes']}/{share['episodes']}"
        took = "" if share["mean_decisions"] is None else f"{share['mean_decisions']:.0f}"
        bounds = f"{share['low']:.0%} to {share['high']:.0%}"
        lines.append(f"{name:<{width}}  {count:>7}  {share['rate']:>4.0%}  {bounds:>12}  {took:>9}")
    seconds = result["seconds"]
    lines.append(
        f"{result['plans']} plans, {result['protocol']['executed']} actions of each; seconds: "
        + ", ".join(f"{phase} {value:.0f}" for phase, value in seconds.items())
    )
    return "\n".join(lines)
