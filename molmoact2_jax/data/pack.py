"""Chooses which examples share a training row: an exact knapsack over a small buffer, on sizes alone, without pixels.

Source: the released packer (`training.md` 3.1): 48 examples wait; when another arrives, the most valuable set that fits
becomes a row. An example's value is its tokens plus 30 for each crop. Two things differ. The release rounds lengths up
to about 512 levels, which costs up to half of a row where examples are alike (two of 1 050 tokens in 2 100); here they
are exact. And it has no term for age, so that what is worth little may wait for ever; here every `OLDEST_EVERY`th row
takes the oldest example, and the most valuable others that fit beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

BUFFER = 48
CROP_VALUE = 30
OLDEST_EVERY = 100  # rows; nothing waits for more than this times the buffer
LIMITS = ("tokens", "crops", "chunks")
_Sums = dict[tuple[int, int], int]  # {(crops, chunks): bit t set where t tokens can be reached}


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


def choose(sizes: np.ndarray, limits: Limits) -> list[int]:
    """Solves the 0/1 knapsack exactly.

    Where crops are equal, value is length; so for every number of crops and chunks it is enough to know which sums of
    lengths can be reached, and an integer holds those as bits.

    Args:
      sizes: i64[E, 3], tokens, crops and chunks of each example.
      limits: what the row can hold.

    Returns:
      Indices of the chosen examples, last first, as the released packer orders a row; of equal sets, the one whose
      last member comes first.
    """
    mask = (2 << limits.tokens) - 1
    rows, tables = sizes.tolist(), [_Sums({(0, 0): 1})]  # one before each example, and one at the end
    for tokens, crops, chunks in rows:
        reached = _Sums(tables[-1])
        for (c, k), sums in tables[-1].items():
            place = c + crops, k + chunks
            if place[0] <= limits.crops and place[1] <= limits.chunks and (more := sums << tokens & mask):
                reached[place] = reached.get(place, 0) | more
        tables.append(reached)
    best = max(tables[-1].items(), key=lambda item: item[1].bit_length() + CROP_VALUE * item[0][0])
    return _backtrack(rows, tables, best[1].bit_length() - 1, *best[0])


def _backtrack(sizes: list[list[int]], tables: list[_Sums], tokens: int, crops: int, chunks: int) -> list[int]:
    chosen = []
    for i in range(len(sizes) - 1, -1, -1):
        if not tables[i].get((crops, chunks), 0) >> tokens & 1:
            chosen.append(i)
            tokens, crops, chunks = tokens - sizes[i][0], crops - sizes[i][1], chunks - sizes[i][2]
    return chosen


def sizes_of(examples: Sequence[Meta]) -> np.ndarray:
    """Returns i64[E, 3]: tokens, crops and chunks."""
    return np.array([(e.tokens, e.crops, e.chunks) for e in examples], np.int64).reshape(-1, 3)


def bound_of(row: Sequence[Meta], rest: Sequence[Meta], limits: Limits) -> str:
    """Names the limit that most of the examples left behind would have exceeded; "supply" if none was left."""
    if not rest:
        return "supply"
    over = (sizes_of(rest) + sizes_of(row).sum(axis=0) > limits.sizes()).sum(axis=0)
    # Crops before tokens on a tie: a longer row would not have helped.
    return max(("crops", "chunks", "tokens"), key=dict(zip(LIMITS, over)).__getitem__)


class Packer:
    """The waiting examples of one stream of rows.

    Attributes:
      waiting: examples not yet in a row, oldest first.
      rows: made so far.
    """

    def __init__(self, limits: Limits, buffer: int = BUFFER, waiting: Sequence[Meta] = (), rows: int = 0):
        self.limits = limits
        self.buffer = buffer
        self.waiting: list[Meta] = list(waiting)
        self.rows = rows

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
        self.rows += 1
        chosen = self._with_oldest() if self.rows % OLDEST_EVERY == 0 else choose(sizes_of(self.waiting), self.limits)
        examples = tuple(self.waiting[i] for i in chosen)
        self.waiting = [e for i, e in enumerate(self.waiting) if i not in set(chosen)]
        return Row(examples, bound_of(examples, self.waiting, self.limits))

    def _with_oldest(self) -> list[int]:
        oldest, *others = sizes_of(self.waiting)
        room = Limits(*(self.limits.sizes() - oldest).tolist())
        return [1 + i for i in choose(np.reshape(others, (-1, 3)), room)] + [0]
