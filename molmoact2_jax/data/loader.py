"""Batches for one process of a run, made by worker processes, with a position that fits any number of either.

Every process plans the same global stream of rows (`plan.py`, sizes only) and makes its own share real. Workers are
plain processes of the standard library: Grain's would each plan the whole stream again and import JAX, and the state
of its prefetching belongs to one number of workers.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import process
from typing import Any

from molmoact2_jax import batch
from molmoact2_jax.data import crew, pack, plan, rows
from molmoact2_jax.data.example import Dataset
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.data.stream import Stream

logger = logging.getLogger(__name__)
_REMEDY = (
    "Run `molmoact2 data check DATASET --quarantine FILE` and give the file to the dataset (`quarantine`), repair the "
    "files, or tolerate more (`max_damage`)."
)


class DamageError(ValueError):
    """More samples are damaged than the run tolerates."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How batches are made.

    Attributes:
      global_batch: rows of all processes together.
      process, processes: which share of them is ours: rows r with r mod processes == process.
      workers: processes that decode; 0 decodes in the caller, which is simplest to debug.
      prefetch: batches made ahead with workers, the bound on what waits in memory.
      max_damage: share of damaged examples above which loading stops; `grace` of them are always tolerated. Episodes
        that could not even be opened count against the same share, without grace.
    """

    global_batch: int
    process: int = 0
    processes: int = 1
    workers: int = 0
    prefetch: int = 2
    max_damage: float = 0.01
    grace: int = 20

    def __post_init__(self):
        if self.global_batch % self.processes or not 0 <= self.process < self.processes:
            raise ValueError(
                f"Options: batch {self.global_batch}, process {self.process} of {self.processes}, expected a "
                "batch that divides among the processes. Change global_batch."
            )


@dataclasses.dataclass
class Report:
    """What has happened since the loader was made; sums over this process's planning and decoding.

    Attributes:
      rows: planned rows of the global stream; `examples`: examples in them; `decoded`: those of this process.
      filled: tokens, crops and chunks in them as parts of the limits, summed over rows.
      bounds: rows by the limit that closed them.
      skipped: sound examples that were left out, by reason.
      noted: examples used although something is remarkable about them.
      quarantined: damaged samples, {(dataset, episode, frame): reason}.
      damaged: how often one was met while "planning" or "decoding", or was lost when "opening" the data.
    """

    rows: int = 0
    examples: int = 0
    decoded: int = 0
    filled: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(pack.LIMITS, 0.0))
    bounds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    noted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    quarantined: dict[tuple[str, int, int | None], str] = dataclasses.field(default_factory=dict)
    damaged: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def damage(self) -> float:
        """Returns the share of damaged examples; every process plans all of them but decodes only its own."""
        planning = self.damaged["planning"] / max(1, self.examples)
        return planning + self.damaged["decoding"] / max(1, self.decoded)

    def met(self) -> int:
        """Returns how often damaged examples were drawn."""
        return self.damaged["planning"] + self.damaged["decoding"]

    def fill(self) -> dict[str, float]:
        """Returns the mean part of each limit that rows use."""
        return {name: total / max(1, self.rows) for name, total in self.filled.items()}

    def scalars(self) -> dict[str, float]:
        """Returns all of it as numbers with names: parts of limits, shares of rows, counts of examples."""
        found = {f"fill/{name}": part for name, part in self.fill().items()}
        found |= {f"bound/{name}": count / max(1, self.rows) for name, count in self.bounds.items()}
        for kind in ("skipped", "noted", "damaged"):
            counts = getattr(self, kind).items()
            found |= {f"{kind}/{reason.replace(' ', '_')}": float(count) for reason, count in counts}
        return found | {"quarantined": float(len(self.quarantined))}


class Loader:
    """An endless iterator over this process's batches.

    `state()` is the position after the last batch that was returned, whatever has been made ahead. It is JSON, equal
    on all processes, and restores into any number of workers and processes: the global batches that follow are
    bit-equal to those of an uninterrupted run.
    """

    def __init__(self, streams: Mapping[str, Stream], options: Options, schedule: plan.Schedule | None = None):
        """Makes a loader at the start of its streams.

        Raises:
          DamageError: too many episodes could not be read when the datasets were opened.
        """
        self.report = Report()
        self._streams = dict(streams)
        self._schedule = schedule or plan.Schedule(tuple(streams))
        self._options = options
        self._crews: tuple[crew.Crew, crew.Crew] | None = None
        self._note_unreadable([dataset for stream in streams.values() for dataset in stream.datasets])
        self._go_to(None)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> batch.Batch:
        """Returns the next batch.

        Raises:
          DamageError: too many samples are damaged.
          ValueError: nothing can be planned.
          ChildProcessError: a worker died.
        """
        try:
            planned, made = self._advance()
        except process.BrokenProcessPool as error:
            raise ChildProcessError(
                "loader: a worker process died, perhaps killed for its memory. Use fewer workers or prefetched batches."
            ) from error
        self._account(planned, made)
        self._state = planned.state
        first = planned.step * self._options.global_batch
        numbers = self._own(range(first, first + self._options.global_batch))
        return rows.stack([m.items for m in made], numbers, self._streams[planned.stream].shape)

    def stream(self, step: int) -> str:
        """Returns the name of the stream that a global step takes."""
        return self._schedule.stream(step)

    def state(self) -> dict[str, Any]:
        """Returns the position, as JSON values."""
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` returned, with any number of workers and processes.

        Raises:
          ValueError: the position belongs to other data.
        """
        self.close()
        self._go_to(state)

    def close(self) -> None:
        """Ends the workers; the next batch starts them again at the position."""
        if self._crews is not None:
            for each in self._crews:
                each.close()
            self._go_to(self._state)

    def _go_to(self, state: Mapping[str, Any] | None) -> None:
        self._planner = plan.Planner(self._streams, self._schedule, self._options.global_batch)
        if state is not None:
            self._planner.restore(state)
        self._state = self._planner.state()
        self._crews = None  # started with the first batch, so that restoring starts none in vain
        self._plans: collections.deque[crew.Future] = collections.deque()
        self._making: collections.deque[tuple[plan.StepPlan, list[crew.Future]]] = collections.deque()

    def _advance(self) -> tuple[plan.StepPlan, list[rows.Made]]:
        """Keeps `prefetch` batches in the making and waits for the oldest."""
        if self._crews is None:
            maker = rows.Maker(self._streams)
            self._crews = (
                crew.Crew(self._planner, min(1, self._options.workers)),
                crew.Crew(maker, self._options.workers),
            )
        planners, makers = self._crews
        ahead = 1 + (self._options.prefetch if self._options.workers else 0)
        while len(self._making) < ahead:
            while len(self._plans) < ahead:
                self._plans.append(planners.submit("__next__"))
            planned = self._plans.popleft().result()
            own = self._own(planned.rows)
            self._making.append((planned, [makers.submit("make", planned.stream, row.examples) for row in own]))
        planned, futures = self._making.popleft()
        return planned, [future.result() for future in futures]

    def _own(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[self._options.process :: self._options.processes]

    def _account(self, planned: plan.StepPlan, made: Sequence[rows.Made]) -> None:
        report, limits = self.report, self._streams[planned.stream].shape.limits
        report.rows += len(planned.rows)
        report.bounds.update(row.bound for row in planned.rows)
        report.skipped.update(planned.tally.skipped)
        report.noted.update(planned.tally.noted)
        for row in planned.rows:
            report.examples += len(row.examples)
            for name, used, limit in zip(pack.LIMITS, pack.sizes_of(row.examples).sum(axis=0), limits.sizes()):
                report.filled[name] += float(used / limit) if limit else 0.0
        report.decoded += sum(len(m.items) for m in made)
        for error in planned.tally.damage:
            self._quarantine(error, "planning")
        for error in (error for m in made for error in m.damage):
            self._quarantine(error, "decoding")

    def _note_unreadable(self, datasets: Sequence[Dataset]) -> None:
        """Names the episodes that nobody can draw because opening them failed."""
        lost = [problem for dataset in datasets for problem in dataset.problems]
        for problem in lost:
            self._name(problem, "opening")
        parts = sum(dataset.parts for dataset in datasets)
        if len(lost) > self._options.max_damage * parts:
            raise DamageError(
                f"loader: {len(lost)} of {parts} episodes cannot be read, tolerated are "
                f"{self._options.max_damage:.2%}; the first: {lost[0]}. {_REMEDY}"
            )

    def _name(self, error: SampleError, when: str) -> None:
        self.report.damaged[when] += 1
        sample = error.dataset, error.episode, error.frame
        if sample not in self.report.quarantined:
            self.report.quarantined[sample] = error.reason
            logger.warning("quarantined: %s", error)

    def _quarantine(self, error: SampleError, when: str) -> None:
        self._name(error, when)
        report, options = self.report, self._options
        if report.met() > options.grace and report.damage() > options.max_damage:
            raise DamageError(
                f"loader: {report.met()} damaged samples, {report.damage():.2%} of those met, tolerated are "
                f"{options.grace} and {options.max_damage:.2%}; the last: {error}. {_REMEDY}"
            )
