"""Random prompts for the very small model: rows of tokens with pictures, padded as a policy pads them."""

import numpy as np

from molmoact2_jax.data import images
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.serve import observe


def row(seed, length, pictures=1, *, tail=()) -> observe.Row:
    """A prompt of `length` tokens that begins with its pictures and ends with `tail`."""
    rng = np.random.default_rng(seed)
    shown = [1, *[96, 98, 97] * pictures]
    text = rng.integers(60, 95, length - len(shown) - len(tail))
    crops = rng.integers(0, 256, (pictures, 28, 28, 3)).astype(np.uint8)
    windows = [images.pooling_indices(2, 2) + 4 * i for i in range(pictures)]
    pooling = np.concatenate([np.zeros((0, 4), np.int32), *windows])
    return observe.Row(np.asarray([*shown, *text, *tail], np.int32), crops, pooling)


def pad(*rows, length=None) -> Inputs:
    """Pads rows on the left to `length`, or to the longest."""
    return observe.pad(rows, 0, length or max(len(row.tokens) for row in rows))
