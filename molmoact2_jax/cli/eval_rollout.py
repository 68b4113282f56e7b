"""`molmoact2 eval rollout`: a checkpoint in a simulator, and the controls that its success is compared with."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.cli import meter, numbers
from molmoact2_jax.envs import registry
from molmoact2_jax.envs.base import Spec
from molmoact2_jax.eval import films, ledger, rollout, scorecard
from molmoact2_jax.serve.policy import Policy


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "rollout",
        description="Runs episodes of a simulator with a checkpoint. With --out, an interrupted rollout is finished "
        "by the same command, and a finished one shows its result again.",
    )
    parser.add_argument("checkpoint", help="directory in the released format, or a run, at an address too")
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
    parser.add_argument(
        "--swap",
        action="append",
        default=[],
        type=numbers.words,
        metavar="TASK,TASK",
        help="a control: each of two tasks gets the other's instruction, and success stays that of the task itself",
    )
    parser.add_argument(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="another control: the same model with the weights that a training run of this seed starts from",
    )
    parser.add_argument("--num-steps", type=int, help="steps of the flow solver (default: the checkpoint's)")
    parser.add_argument("--noise-seed", type=int, default=0, help="of the noise that plans start from")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument("--envs", type=int, default=12, help="episodes at the same time (default 12)")
    parser.add_argument("--processes", type=int, default=2, help="that run the simulators; 0 runs them here")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="of the simulator")
    parser.add_argument("--film", type=numbers.ranges, default=(), metavar="SEEDS", help="keeps these pictures")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="for rollout.json, rounds and pictures")
    parser.add_argument("--json", action="store_true", help="prints the result file instead of a table")


def run(args: argparse.Namespace) -> int:
    """Runs what is left of the protocol, writes the result, shows a table."""
    registry.require_tasks(args.env, args.tasks)
    if args.random_weights is None:
        policy = Policy.from_pretrained(args.checkpoint, dtype=args.dtype)
    else:
        policy = scorecard.untrained(args.checkpoint, args.dtype, args.random_weights)
    protocol, spec = _protocol(args, policy)
    facts = _facts(args, policy)
    kept = ledger.Ledger(args.out, scorecard.identity(protocol, facts, spec))
    planner = _planner(args, policy, protocol)
    with meter.Meter("rollout", "episodes") as progress:
        for done in rollout.rounds(protocol, planner, progress, first=len(kept.records)):
            record = scorecard.record(done)
            if args.out:
                films.save_strips(done, record, kept.records, args.out)
                films.save_films(done.episodes, args.out, fps=spec.fps)
            kept.add(record)
    result = kept.finish(scorecard.result(protocol, facts, spec, kept.records))
    print(json.dumps(result) if args.json else table(result))
    return 0


def _facts(args: argparse.Namespace, policy: Policy) -> dict[str, Any]:
    """Returns what the result says about the policy."""
    return dict(
        checkpoint=str(args.checkpoint),
        digest=scorecard.digest(policy, args.norm_tag),
        random_weights=args.random_weights,
        dtype=args.dtype,
        num_steps=args.num_steps or policy.cfg.flow.num_steps,
    )


def _protocol(args: argparse.Namespace, policy: Policy) -> tuple[rollout.Protocol, Spec]:
    tag, options = policy.host.tag(args.norm_tag), dict(map(numbers.setting, args.option))
    env = registry.open_environment(args.env, args.tasks[0], **options)
    env.close()
    executed = args.executed or tag.n_action_steps or policy.host.horizon(tag)
    protocol = rollout.Protocol(
        env=args.env,
        tasks=args.tasks,
        seeds=args.seeds,
        norm_tag=args.norm_tag,
        executed=executed,
        cameras=scorecard.fit(tag, args.norm_tag, env.spec, executed),
        horizon=args.horizon,
        instructions=_instructions(args, registry.adapter(args.env).instructions()),
        noise_seed=args.noise_seed,
        num_envs=min(args.envs, len(args.tasks) * len(args.seeds)),
        num_processes=args.processes,
        options=options,
        filmed=args.film,
    )
    return protocol, env.spec


def _planner(args: argparse.Namespace, policy: Policy, protocol: rollout.Protocol) -> rollout.Planner:
    options = {} if args.num_steps is None else {"num_steps": args.num_steps}
    return scorecard.planner(policy, protocol.executed, **options)


def _instructions(args: argparse.Namespace, known: Mapping[str, str]) -> dict[str, str]:
    """Reads TASK=OTHER: the words told for TASK are those of the task OTHER, or OTHER itself; and pairs to swap."""
    told = {}
    for text in args.instruct:
        task, equals, other = text.partition("=")
        if not equals or task not in args.tasks:
            raise ValueError(f"--instruct: {text!r}, expected TASK=OTHER with one of {', '.join(args.tasks)}.")
        told[task] = known.get(other, other)
    for pair in args.swap:
        if len(pair) != 2 or not set(pair) <= set(args.tasks):
            raise ValueError(f"--swap: {','.join(pair)!r}, expected two of {', '.join(args.tasks)}, as TASK,TASK.")
        told |= {pair[0]: known[pair[1]], pair[1]: known[pair[0]]}
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
    for task, words in result["protocol"]["instructions"].items():
        lines.append(f"control: {task} was told {words!r}")
    if result["policy"]["random_weights"] is not None:
        lines.append(f"control: random weights of seed {result['policy']['random_weights']}")
    lines.append(
        f"{result['plans']} plans, {result['protocol']['executed']} actions of each; seconds: "
        + ", ".join(f"{phase} {value:.0f}" for phase, value in seconds.items())
    )
    return "\n".join(lines)
