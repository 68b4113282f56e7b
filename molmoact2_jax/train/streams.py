"""Random keys of a training step: one stream for each use, and in it one key for each global row.

They depend on the step and the row, on no device or process: that is what makes a run the same on any mesh.
"""

from __future__ import annotations

import jax

STREAMS = {"dropout": 0, "flow": 1, "codes": 2, "augment": 3, "adapters": 4, "head": 5}


def key_of(key: jax.Array, stream: str) -> jax.Array:
    """Returns the key of one use of randomness in a step; `stream` is a name in `STREAMS`."""
    return jax.random.fold_in(key, STREAMS[stream])


def row_keys(key: jax.Array, row: jax.Array, stream: str) -> jax.Array:
    """Returns keys [B] of one use, for rows numbered i32[B] through all steps."""
    own = key_of(key, stream)
    return jax.vmap(lambda r: jax.random.fold_in(own, r))(row)
