"""Directories as commands leave them, for tests of the report: a toy rollout with its controls, a run, comparisons."""

import dataclasses
import json
import sys

import numpy as np

from molmoact2_jax.data import norm_stats
from molmoact2_jax.envs import toy
from molmoact2_jax.eval import films, ledger, open_loop, open_loop_plots, rollout, scorecard, timings
from molmoact2_jax.eval.report_inputs import Places
from molmoact2_jax.train import writers

PROTOCOL = rollout.Protocol("toy", ("go-red", "go-blue"), (0, 1, 2, 3), "toy", executed=4, num_envs=2, num_processes=0)
POLICY = dict(checkpoint="runs/toy", digest="0123456789abcdef", random_weights=None, dtype="float32", num_steps=10)


def seeing(observations, seeds):
    """Goes to the square of the instruction; does nothing in every third episode."""
    plans = []
    for one, seed in zip(observations, seeds, strict=True):
        colour = toy.COLOURS["red" if "red" in one.task else "blue"]
        rows, columns = np.nonzero((one.images[0] == colour).all(axis=-1))
        there = np.array([columns.mean(), rows.mean()]) / (toy.SIDE - 1)
        step = np.clip((there - one.state) / (4 * toy.SPEED), -1, 1) * (seed[1] % 3 > 0)
        plans.append(np.repeat(step[None], 4, axis=0).astype(np.float32))
    return plans


def drunk(observations, seeds):
    return [np.random.default_rng(seed).uniform(-1, 1, (4, 2)) for seed in seeds]


def roll(directory, protocol, plan, policy):
    spec = toy.Toy("go-red").spec
    kept = ledger.Ledger(directory, scorecard.identity(protocol, policy, spec))
    for done in rollout.rounds(protocol, plan):
        record = scorecard.record(done)
        films.save_strips(done, record, kept.records, directory)
        films.save_films(done.episodes, directory, spec.fps)
        kept.add(record)
    return kept.finish(scorecard.result(protocol, policy, spec, kept.records))


def compared():
    rng, count = np.random.default_rng(0), 12
    recorded = np.cumsum(rng.normal(size=(count, 4, 2)), axis=0).astype(np.float32)
    valid = np.arange(4) + np.arange(count)[:, None] < count
    return open_loop.Comparison(
        episode=np.full(count, 7), frame=np.arange(count), task=("Go to the red square",) * count,
        predicted=recorded + rng.normal(scale=0.3, size=(3, count, 4, 2)).astype(np.float32), recorded=recorded,
        valid=valid, names=("x", "y"),
    )  # fmt: skip


def everything(directory):
    """Writes all that a report may show; returns where it is."""
    roll(directory / "rollout", dataclasses.replace(PROTOCOL, filmed=(1,)), seeing, POLICY)
    words = {"go-red": toy.TASKS["go-blue"], "go-blue": toy.TASKS["go-red"]}
    roll(directory / "control", dataclasses.replace(PROTOCOL, instructions=words), seeing, POLICY)
    roll(directory / "random", PROTOCOL, drunk, POLICY | dict(random_weights=5, digest="f" * 16))
    log = writers.Jsonl(directory / "run", 0)
    log.scalars(0, {"validation/loss/flow": 1.5, "open_loop/toy": 0.9, "open_loop/toy/constant": 0.6})
    for step in range(1, 101):
        loss = {"loss": 1.4 / step**0.5, "loss/flow": 1.4 / step**0.5, "loss/language": 0.0}
        log.scalars(step, loss | {"step_seconds": 0.125, "host_gb": 1.75})
    log.scalars(100, {"validation/loss/flow": 0.2345, "open_loop/toy": 0.3456, "open_loop/toy/constant": 0.6})
    log.close()
    (directory / "open_loop").mkdir()
    stats = norm_stats.TagStats(q01=(-1.0, -1.0), q99=(1.0, 1.0))
    found = open_loop.summary(compared(), stats)
    (directory / "open_loop" / "open_loop.json").write_text(json.dumps(found))
    open_loop_plots.save(compared(), directory / "open_loop", 4)
    for part in ("collect", "train"):
        timings.measure(directory / "timings.jsonl", part, [sys.executable, "-c", "bytes(50_000_000)"])
    return Places(**{n: directory / n for n in ("run", "rollout", "control", "random", "open_loop")},
                  timings=directory / "timings.jsonl")  # fmt: skip
