"""What a stream of training rows is made of: its datasets, their shares, and the sizes of a row."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from molmoact2_jax.data import mixture, pack
from molmoact2_jax.data.example import Dataset


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The fixed sizes of a stream's rows.

    Attributes:
      limits: tokens, crops and chunks of a row.
      crop_size: side of a crop in pixels.
      patches: patches of a crop.
      windows: image tokens of a row at most.
      window: patches that an image token pools.
      horizon: action steps; `channels`: action channels.
      pad: id of padding tokens.
    """

    limits: pack.Limits
    crop_size: int
    patches: int
    windows: int
    window: int
    horizon: int
    channels: int
    pad: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """What rows of one kind are made of.

    Attributes:
      datasets: sorted by name, which makes the draws independent of the order they were opened in.
      probabilities: f64[D], from `mixture.weights`.
      shape: sizes of a row.
      seed: of draws and shuffles.
      buffer: examples that wait to be packed.
    """

    datasets: Sequence[Dataset]
    probabilities: np.ndarray
    shape: RowShape
    seed: int = mixture.DATA_SEED
    buffer: int = pack.BUFFER

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, all that the stream depends on."""
        return {
            "datasets": _digest([(d.name, d.digest, len(d)) for d in self.datasets]),
            "probabilities": _digest([float(p).hex() for p in self.probabilities]),
            "limits": list(dataclasses.astuple(self.shape.limits)),
            "seed": self.seed,
            "buffer": self.buffer,
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
