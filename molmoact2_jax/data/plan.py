"""The global stream of training rows, planned without pixels and the same on every process.

A position in it is small: how far the draws have come, how many rows were made, and which examples wait.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.data import example as example_lib
from molmoact2_jax.data import mixture, pack
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.data.stream import Stream

VERSION = 2
MAX_SKIPS = 1000  # examples skipped one after another before something must be wrong


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which stream a global step takes: "robot" or "vlm" by the released formula, or the only one there is."""

    names: tuple[str, ...]
    vlm_rate: float = mixture.VLM_RATE
    seed: int = mixture.TRAINER_SEED

    def __post_init__(self):
        if len(self.names) != 1 and set(self.names) != {"robot", "vlm"}:
            raise ValueError(f'Schedule: streams {self.names}, expected one, or "robot" and "vlm".')

    def stream(self, step: int) -> str:
        return self.names[0] if len(self.names) == 1 else mixture.stream_at(step, self.vlm_rate, self.seed)


@dataclasses.dataclass
class Tally:
    """What the planner met: examples left out by reason, examples with a note, damaged ones."""

    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    noted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    damage: list[SampleError] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The rows of one global step, and the position after it."""

    step: int
    stream: str
    rows: tuple[pack.Row, ...]
    state: dict[str, Any]
    tally: Tally


class RowPlanner:
    """Rows of one stream, one after another."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.tally = Tally()
        self._identity = stream.identity()
        self._draws = mixture.Draws([len(d) for d in stream.datasets], stream.probabilities, stream.seed)
        self._packer = pack.Packer(stream.shape.limits, stream.buffer)

    def state(self) -> dict[str, Any]:
        waiting = [list(dataclasses.astuple(meta)) for meta in self._packer.waiting]
        rows, position = self._packer.rows, self._draws.position
        return {"position": position, "waiting": waiting, "rows": rows, "identity": self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` returned.

        Raises:
          ValueError: the stream differs from the one the state was made of.
        """
        now = self._identity
        changed = [
            f"{key}: {state['identity'].get(key)}, now {now[key]}"
            for key in now
            if state["identity"].get(key) != now[key]
        ]
        if changed:
            raise ValueError(
                f"restore: the position belongs to other data ({'; '.join(changed)}). Restore with the same datasets, "
                "weights, limits and seed, or start without a position."
            )
        self._draws.seek(state["position"])
        waiting = [pack.Meta(*sizes) for sizes in state["waiting"]]
        self._packer = pack.Packer(self.stream.shape.limits, self.stream.buffer, waiting, state["rows"])

    def __next__(self) -> pack.Row:
        """Returns the next row.

        Raises:
          ValueError: `MAX_SKIPS` examples in a row could not be used.
        """
        unused = 0
        while unused < MAX_SKIPS:
            meta = self._measured(*next(self._draws))
            unused = 0 if meta else unused + 1
            if meta and (row := self._packer.add(meta)):
                return row
        raise ValueError(
            f"planning: {MAX_SKIPS} examples in succession were left out ({dict(self.tally.skipped)}, "
            f"{len(self.tally.damage)} damaged), limits {self.stream.shape.limits}. Raise the limits or check the data."
        )

    def _measured(self, dataset: int, index: int, epoch: int) -> pack.Meta | None:
        """Returns the sizes of an example, or None (counted) where it cannot be used."""
        try:
            example = self.stream.datasets[dataset].example(index, epoch)
        except SampleError as error:
            self.tally.damage.append(error)
            return None
        except example_lib.Skipped as skipped:
            self.tally.skipped[skipped.reason] += 1
            return None
        meta = example.meta(dataset, index, epoch)
        over = self.stream.shape.limits.exceeded(pack.sizes_of([meta])[0])
        if over:
            self.tally.skipped[f"{over[0]} over the limit"] += 1
            return None
        if example.note:
            self.tally.noted[example.note] += 1
        return meta


class Planner:
    """Rows of all streams, step by step."""

    def __init__(self, streams: Mapping[str, Stream], schedule: Schedule, rows_per_step: int):
        self._rows = {name: RowPlanner(stream) for name, stream in streams.items()}
        self._schedule = schedule
        self._count = rows_per_step
        self._step = 0

    def state(self) -> dict[str, Any]:
        """Returns the position as JSON values: the same on every process, for any number of workers."""
        return {
            "version": VERSION,
            "step": self._step,
            "streams": {name: planner.state() for name, planner in self._rows.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` returned.

        Raises:
          ValueError: the state is of another version or of other streams.
        """
        if state.get("version") != VERSION:
            raise ValueError(
                f"restore: a position of version {state.get('version')}, expected {VERSION}: rows were packed otherwise"
                " then. Resume with the release of this library that saved it, or start without a position."
            )
        if set(state["streams"]) != set(self._rows):
            raise ValueError(
                f"restore: streams {sorted(state['streams'])}, expected {sorted(self._rows)}. Restore with the "
                "configuration it was saved with."
            )
        for name, planner in self._rows.items():
            planner.restore(state["streams"][name])
        self._step = state["step"]

    def __next__(self) -> StepPlan:
        name = self._schedule.stream(self._step)
        planner = self._rows[name]
        planner.tally = Tally()
        planned = tuple(next(planner) for _ in range(self._count))
        self._step += 1
        return StepPlan(self._step - 1, name, planned, self.state(), planner.tally)
