"""Demonstrations of scripted experts as datasets: in parallel, only successful ones, the same for the same seeds."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from molmoact2_jax.data import crew
from molmoact2_jax.envs import experts, registry
from molmoact2_jax.envs.base import Environment, Spec
from molmoact2_jax.eval import demonstrations

FORMATS = ("lerobot", "rlds")
MAX_ATTEMPTS = 4  # per wanted demonstration; an expert that fails more often has another problem

Progress = Callable[[int, int, int], None]  # (episodes run, episodes of this round, of them successful)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which demonstrations to make. Together with the versions in the report it decides every number of them.

    Attributes:
      env: name of the simulator (`registry`).
      tasks: names of its tasks.
      per_task: successful demonstrations of each.
      first_seed: seeds are tried from this one on.
      disturbance: how the expert leaves its path.
      formats: some of `FORMATS`.
      options: of the simulator's adapter.
    """

    env: str
    tasks: tuple[str, ...]
    per_task: int
    first_seed: int = 1000
    disturbance: experts.Disturbance = dataclasses.field(default_factory=experts.Disturbance)
    formats: tuple[str, ...] = FORMATS
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Demonstrator:
    """Runs episodes and leaves each in a file of its own; one per process, with one simulator open at a time."""

    def __init__(self, order: Order, directory: pathlib.Path):
        self._order, self._directory = order, directory
        self._env: Environment | None = None

    def record(self, task: str, seed: int) -> bool:
        """Makes one demonstration; returns whether it succeeded."""
        if self._env is None or self._env.spec.task != task:
            self.close()
            self._env = registry.open_environment(self._order.env, task, **self._order.options)
        shown = experts.demonstrate(self._env, seed, self._order.disturbance)
        demonstrations.save(episode_path(self._directory, task, seed), shown)
        return shown.success

    def spec(self, task: str) -> Spec:
        """Returns what a task of the simulator is."""
        env = registry.open_environment(self._order.env, task, **self._order.options)
        env.close()
        return env.spec

    def close(self) -> None:
        """Closes the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None


def episode_path(directory: pathlib.Path, task: str, seed: int) -> pathlib.Path:
    """Returns where an episode lies until the datasets are written."""
    return directory / "episodes" / task / f"{seed}.npz"


def collect(order: Order, directory: pathlib.Path, num_processes: int = 2, progress: Progress | None = None) -> dict:
    """Makes demonstrations until each task has enough of them, and writes them as datasets.

    A call that was interrupted is finished by the same call. Datasets hold the tasks in turn, so that the last
    episodes, too, show all of them.

    Args:
      order: what to make.
      directory: receives one dataset per format, in a folder of the format's name, beside it a JSON file that says
        what its columns mean, and `collect.json`; and `maps`, where the simulator measures depth.
      num_processes: that run the simulator; 0 the caller's.
      progress: see `Progress`.

    Returns:
      The report, which `collect.json` holds too: order, specs, counts, seconds.

    Raises:
      ValueError: unknown names, a directory that was begun with another order, or an expert that fails too often.
    """
    report_path = directory / "collect.json"
    _begin(order, directory)
    if not report_path.exists():
        _make(order, directory, num_processes, progress or (lambda made, needed, good: None))
    return json.loads(report_path.read_text())


def _make(order: Order, directory: pathlib.Path, num_processes: int, progress: Progress) -> None:
    begin = time.perf_counter()
    counts = _record(order, directory, num_processes, progress)
    kept = _kept(order, directory)
    spec = Demonstrator(order, directory).spec(order.tasks[0])
    for name in order.formats:
        demonstrations.WRITERS[name](directory / name, spec, (demonstrations.load(path) for path in kept))
        _write_json(directory / f"{name}.json", dataclasses.asdict(demonstrations.MEANINGS[name](spec)))
    demonstrations.write_maps(directory / "maps", (demonstrations.load(path) for path in kept))
    report = _report(order, kept, counts, spec) | {"seconds": round(time.perf_counter() - begin, 1)}
    _write_json(directory / "collect.json", report)
    shutil.rmtree(directory / "episodes")


def _begin(order: Order, directory: pathlib.Path) -> None:
    """Checks the order, and that the directory is new or was begun with the same one."""
    registry.require_tasks(order.env, order.tasks)
    unknown = sorted(set(order.formats) - set(FORMATS))
    if unknown or not order.formats or order.per_task < 1 or not order.tasks:
        raise ValueError(
            f"collect: {order.per_task} demonstrations of {len(order.tasks)} tasks as {list(order.formats)}, expected "
            f"at least 1 of 1 task as some of {list(FORMATS)}."
        )
    path, words = directory / "order.json", json.loads(json.dumps(dataclasses.asdict(order)))
    if path.exists() and json.loads(path.read_text()) != words:
        raise ValueError(f"{directory}: was begun with another order, see order.json. Use a new directory.")
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(path, words)


def _record(order: Order, directory: pathlib.Path, num_processes: int, progress: Progress) -> dict[str, int]:
    """Runs episodes until every task has enough; returns how many attempts each took."""
    wanted = dict.fromkeys(order.tasks, order.per_task)
    demonstrator = Demonstrator(order, directory)
    workers = crew.Crew(demonstrator, num_processes)
    try:
        while missing := list(_missing(order, directory, wanted)):
            futures = [workers.submit("record", task, seed) for task, seed in missing]
            good = 0
            for done, future in enumerate(futures, 1):
                good += future.result()
                progress(done, len(futures), good)
            wanted = {task: order.per_task + failures for task, failures in _failures(order, directory, wanted)}
    finally:
        workers.close()
        demonstrator.close()
    return wanted


def _missing(order: Order, directory: pathlib.Path, attempts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yields tasks and seeds that were not tried yet."""
    for task, count in attempts.items():
        if count > MAX_ATTEMPTS * order.per_task:
            raise ValueError(
                f"collect: {count - order.per_task} failures for {order.per_task} demonstrations of {task!r}, expected "
                "an expert that mostly succeeds. Disturb it less."
            )
        for seed in range(order.first_seed, order.first_seed + count):
            if not episode_path(directory, task, seed).exists():
                yield task, seed


def _failures(order: Order, directory: pathlib.Path, attempts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for task, count in attempts.items():
        seeds = range(order.first_seed, order.first_seed + count)
        yield task, sum(not demonstrations.succeeded(episode_path(directory, task, seed)) for seed in seeds)


def _kept(order: Order, directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the successful episodes, the first of each task, then the second of each, ..."""
    by_task = []
    for task in order.tasks:
        paths = sorted((directory / "episodes" / task).glob("*.npz"), key=lambda path: int(path.stem))
        by_task.append([path for path in paths if demonstrations.succeeded(path)][: order.per_task])
    return [path for turn in zip(*by_task, strict=True) for path in turn]


def _report(order: Order, kept: list[pathlib.Path], attempts: Mapping[str, int], spec: Spec) -> dict[str, Any]:
    lengths: dict[str, list[int]] = collections.defaultdict(list)
    styles: collections.Counter[str] = collections.Counter()
    for path in kept:
        shown = demonstrations.load(path)
        lengths[shown.task].append(len(shown.actions))
        styles[shown.style] += 1
    tasks = {
        task: dict(episodes=len(each), attempts=attempts[task], frames=sum(each), mean_length=float(np.mean(each)))
        for task, each in lengths.items()
    }
    return dict(
        order=dataclasses.asdict(order),
        spec={
            field: value for field, value in dataclasses.asdict(spec).items() if field not in ("task", "instruction")
        },
        tasks=tasks,
        episodes=len(kept),
        frames=sum(map(sum, lengths.values())),
        styles=dict(styles),
    )


def _write_json(path: pathlib.Path, value: Any) -> None:
    unfinished = path.with_suffix(".incomplete")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)
