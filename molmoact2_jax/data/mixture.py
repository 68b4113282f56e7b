"""Which dataset each position of a training stream comes from, and in which order a dataset's examples come.

All of it is a function of a seed: every process draws the same stream, and a position is enough to go on from it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

logger = logging.getLogger(__name__)

DATA_SEED = 50189
TRAINER_SEED = 6198
VLM_RATE = 0.1  # of examples in one mixed stream, of steps where there are two streams


@dataclasses.dataclass(frozen=True)
class Share:
    """A dataset's claim inside its group: `rate * root_size(size, factor)`, against the others of the group.

    Attributes:
      name: of the dataset.
      group: norm tag of a robot, or task family of a multimodal set.
      size: number of examples (frames, for a robot).
      factor: see `root_size`.
      rate: further multiplier.
    """

    name: str
    group: str
    size: int
    factor: float | None = None
    rate: float = 1.0


def root_size(size: int, factor: float | None) -> float:
    """Returns the square root of a size as released: of `factor` itself above 1, of a fraction below, 1 at 0."""
    if factor is None:
        return math.sqrt(size)
    if factor == 0:
        return 1.0
    return math.sqrt(factor if factor >= 1 else size * factor)


def weights(shares: Sequence[Share], group_rates: Mapping[str, float]) -> np.ndarray:
    """Returns f64[D], the probability of each dataset; they sum to 1.

    A group of which no dataset is present leaves its part to the others in proportion, which is logged.

    Raises:
      ValueError: a dataset is empty or of a group without a rate, or no dataset has any weight.
    """
    result = np.zeros(len(shares))
    for i, share in enumerate(shares):
        if share.group not in group_rates:
            raise ValueError(
                f"mixture.weights: {share.name} is of group {share.group!r}, expected one of {sorted(group_rates)}. "
                "Give the group a rate."
            )
        if share.size < 1:
            raise ValueError(f"mixture.weights: {share.name} has {share.size} examples, expected at least one.")
        result[i] = share.rate * root_size(share.size, share.factor)
    for group, rate in group_rates.items():
        members = np.array([share.group == group for share in shares], bool)
        if members.any():
            result[members] *= rate / result[members].sum()
        elif rate > 0:
            logger.warning("mixture: no dataset of group %s; the others take over its %.4f", group, rate)
    if not result.sum() > 0:
        raise ValueError(f"mixture.weights: nothing to draw from {list(shares)} at rates {dict(group_rates)}.")
    return result / result.sum()


def blended(
    robot: Mapping[str, float], vlm: Mapping[str, float], groups: Collection[str], vlm_rate: float = VLM_RATE
) -> dict[str, float]:
    """Returns the group rates of one stream that holds both kinds, as in pre-training.

    Args:
      robot: rates of the tags against each other.
      vlm: rates of the task families against each other.
      groups: those of which there is a dataset. One that is absent leaves its part to others of its own kind, so that
        robots and multimodal examples keep their shares; it is logged.
      vlm_rate: share of multimodal examples.
    """
    rates: dict[str, float] = {}
    for part, kind in ((1 - vlm_rate, robot), (vlm_rate, vlm)):
        present = {group: rate for group, rate in kind.items() if group in groups}
        for group, rate in kind.items():
            if group not in present:
                logger.warning("mixture: no dataset of group %s; others of its kind take over its %.4f", group, rate)
        rates |= {group: part * rate / (sum(present.values()) or 1.0) for group, rate in present.items()}
    return rates


def stream_at(step: int, vlm_rate: float = VLM_RATE, seed: int = TRAINER_SEED) -> str:
    """Returns "vlm" or "robot": the stream that global step `step` takes, the same on every process.

    Source: the released trainer's choice per step (`training.md` 3.4).
    """
    u = np.random.RandomState((seed + step * 1_000_003) % 2**32).random_sample()
    return "vlm" if u < vlm_rate else "robot"


class Draws:
    """An endless stream of (dataset, index, epoch). Within its dataset every index comes once per epoch.

    Source: one generator chooses the datasets, another shuffles each epoch (`training.md` 3.5).

    Attributes:
      position: number of draws so far; all the state there is.
    """

    BLOCK = 1 << 16

    def __init__(self, sizes: Sequence[int], probabilities: np.ndarray, seed: int = DATA_SEED):
        self.sizes = tuple(int(size) for size in sizes)
        self.seed = seed
        self._cdf = np.cumsum(probabilities)
        self._cdf /= self._cdf[-1]
        self.seek(0)

    def seek(self, position: int) -> None:
        """Goes to a position by counting the draws before it: tens of millions a second."""
        self._rng = np.random.RandomState(self.seed)
        self._drawn = np.zeros(len(self.sizes), np.int64)  # per dataset
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._block, self._next, self.position = np.zeros(0, np.int64), 0, position
        for start in range(0, position, self.BLOCK):
            block = self._draw()
            count = min(self.BLOCK, position - start)
            self._drawn += np.bincount(block[:count], minlength=len(self.sizes))
            self._block, self._next = block, count

    def __next__(self) -> tuple[int, int, int]:
        """Returns (dataset, index, epoch) of this position and moves on."""
        if self._next == len(self._block):
            self._block, self._next = self._draw(), 0
        dataset = int(self._block[self._next])
        epoch, place = divmod(int(self._drawn[dataset]), self.sizes[dataset])
        self._next += 1
        self._drawn[dataset] += 1
        self.position += 1
        return dataset, int(self._order(dataset, epoch)[place]), epoch

    def _draw(self) -> np.ndarray:
        return np.searchsorted(self._cdf, self._rng.random_sample(self.BLOCK), side="right")

    def _order(self, dataset: int, epoch: int) -> np.ndarray:
        held = self._orders.get(dataset)
        if held is None or held[0] != epoch:
            order = np.random.RandomState(self.seed + 1771 * epoch).permutation(self.sizes[dataset])
            held = self._orders[dataset] = epoch, order.astype(np.int32)
        return held[1]


def example_rng(seed: int, index: int, size: int, epoch: int) -> np.random.RandomState:
    """Returns the generator of one example's own choices (style, cameras, wording).

    Source: `io.md` 8.2; another epoch of the same example draws anew.
    """
    return np.random.RandomState((seed * 195172 + index + size * epoch) % (2**32 - 1))
