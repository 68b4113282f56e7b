"""Chooses which examples share a training row: an exact knapsack over a small buffer, on sizes alone, without pixels.

Source: the released packer (`training.md` 3.1): 48 examples wait; when another arrives, the most valuable set that fits
becomes a row. An example's value is its tokens plus 30 for each crop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

BUFFER = 48
CROP_VALUE = 30
LIMITS = ("tokens", "crops", "chunks")
LEVELS = 512  # token lengths are rounded up to about this many levels


@dataclasses.dataclass(frozen=True)
class Meta:
    """What the planner knows of an example.

    `dataset`, `index` and `epoch` name it: everything else about it is a function of the three. `tokens` counts input
    tokens, `crops` pictures after cutting, `chunks` is 1 if it carries actions.
    """

    dataset: int
    index: int
    epoch: int
    tokens: int
    crops: int
    chunks: int

    @property
    def name(self) -> tuple[int, int, int]:
        return self.dataset, self.index, self.epoch


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a row can hold: tokens, crops, action chunks (0 for rows that carry none)."""

    tokens: int
    crops: int = 8
    chunks: int = 5

    def sizes(self) -> np.ndarray:
        """Returns i64[3]: tokens, crops and chunks."""
        return np.array([self.tokens, self.crops, self.chunks], np.int64)

    def exceeded(self, sizes: np.ndarray) -> tuple[str, ...]:
        """Returns the names of the limits that a load of i64[3] would break."""
        return tuple(name for name, over in zip(LIMITS, sizes > self.sizes()) if over)


@dataclasses.dataclass(frozen=True)
class Row:
    """Examples that share a row, in order. `bound` is the limit that kept the others out (`bound_of`)."""

    examples: tuple[Meta, ...]
    bound: str


def choose(sizes: np.ndarray, limits: Limits, granularity: int | None = None) -> list[int]:
    """Solves the 0/1 knapsack exactly for token lengths rounded up to multiples of `granularity`.

    Args:
      sizes: i64[E, 3], tokens, crops and chunks of each example.
      limits: what the row can hold.
      granularity: tokens; the released `max(1, tokens // 512)` if None.

    Returns:
      Indices of the chosen examples, last first, as the released packer orders a row.
    """
    unit = max(1, limits.tokens // LEVELS) if granularity is None else granularity
    costs = np.stack([sizes[:, 2], sizes[:, 1], -(-sizes[:, 0] // unit)], axis=1)  # the longest axis last: it is fast
    values = sizes[:, 0] + CROP_VALUE * sizes[:, 1]
    room = np.array([limits.chunks, limits.crops, limits.tokens // unit])
    if len(costs) and (np.sort(costs, axis=0)[:2].sum(axis=0) > room).any() and (costs <= room).all():
        return [int(values.argmax())]  # no two fit together
    # No cell above the sum of all sizes is ever reached, so a slack limit costs nothing.
    caps = np.minimum(costs.sum(axis=0), room)
    return _backtrack(_table(costs, values, caps), costs, caps)


def _table(costs: np.ndarray, values: np.ndarray, caps: np.ndarray) -> list[np.ndarray]:
    """Returns for each example bool[capacities that can hold it], true where taking it is strictly better."""
    best = np.zeros(caps + 1, np.int32)
    taken = []
    for cost, value in zip(costs, values.astype(np.int32)):
        room = best[tuple(slice(c, None) for c in cost)]
        with_it = best[tuple(slice(n) for n in room.shape)] + value
        taken.append(with_it > room)
        np.maximum(room, with_it, out=room)
    return taken


def _backtrack(taken: list[np.ndarray], costs: np.ndarray, caps: np.ndarray) -> list[int]:
    left, chosen = caps.copy(), []
    for i in range(len(costs) - 1, -1, -1):
        at = left - costs[i]
        if (at >= 0).all() and taken[i][tuple(at)]:
            chosen.append(i)
            left = at
    return chosen


def sizes_of(examples: Sequence[Meta]) -> np.ndarray:
    """Returns i64[E, 3]: tokens, crops and chunks."""
    return np.array([(e.tokens, e.crops, e.chunks) for e in examples], np.int64).reshape(-1, 3)


def bound_of(row: Sequence[Meta], rest: Sequence[Meta], limits: Limits) -> str:
    """Names the limit that most of the examples left behind would have exceeded; "supply" if none was left."""
    if not rest:
        return "supply"
    over = (sizes_of(rest) + sizes_of(row).sum(axis=0) > limits.sizes()).sum(axis=0)
    # Crops before tokens on a tie: a longer row would not have helped. None over: the rounding of lengths kept it out.
    bounds = ("crops", "chunks", "tokens") if over.any() else ("tokens",)
    return max(bounds, key=dict(zip(LIMITS, over)).__getitem__)


class Packer:
    """The waiting examples of one stream of rows.

    Attributes:
      waiting: examples not yet in a row, oldest first.
    """

    def __init__(self, limits: Limits, buffer: int = BUFFER, waiting: Sequence[Meta] = ()):
        self.limits = limits
        self.buffer = buffer
        self.waiting: list[Meta] = list(waiting)

    def add(self, example: Meta) -> Row | None:
        """Takes an example; returns a row if the buffer was full before.

        Raises:
          ValueError: the example alone is above a limit, and so would never leave.
        """
        over = self.limits.exceeded(sizes_of([example])[0])
        if over:
            raise ValueError(f"Packer.add: {example} exceeds {over} of {self.limits}. Skip it before it gets here.")
        row = self.take() if len(self.waiting) >= self.buffer else None
        self.waiting.append(example)
        return row

    def take(self) -> Row:
        """Removes the best row from the waiting examples; at the end of a finite stream, until none waits."""
        chosen = choose(sizes_of(self.waiting), self.limits)
        examples = tuple(self.waiting[i] for i in chosen)
        self.waiting = [e for i, e in enumerate(self.waiting) if i not in set(chosen)]
        return Row(examples, bound_of(examples, self.waiting, self.limits))
