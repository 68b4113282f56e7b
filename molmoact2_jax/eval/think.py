"""What calls that reasoned about depth saw and decided, as rows of a drawing."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from molmoact2_jax.data import depth
from molmoact2_jax.eval import pictures
from molmoact2_jax.models import depth_vq
from molmoact2_jax.models.depth_vq import DepthVQConfig, Params
from molmoact2_jax.serve.records import Action

Codec = tuple[DepthVQConfig, Params]


def frames(
    calls: Sequence[Action], others: Sequence[np.ndarray] = (), codec: Codec | None = None
) -> list[pictures.DepthFrame]:
    """Returns a row for each call: what its first camera saw, the cells it predicted anew, its codes.

    Args:
      calls: with depth codes, in order.
      others: u8[H, W, 3] of the further cameras.
      codec: draws the codes as depth.

    Raises:
      ValueError: a call without depth, or a codec of another grid or of too few codes.
    """
    rows = []
    for number, call in enumerate(calls):
        if call.depth_cache is None:
            raise ValueError(f"think.frames: call {number} has no depth, expected codes of {depth.NUM_CELLS} cells.")
        codes = call.depth_cache.codes
        rows.append(
            pictures.DepthFrame(
                title=f"call {number + 1}: {call.changed} cells, {call.passes} passes",
                picture=call.depth_cache.image,
                codes=codes,
                mask=call.changed_cells,
                decoded=None if codec is None else _decode(*codec, codes),
                others=others,
            )
        )
    return rows


def levels(codec: Codec | None) -> np.ndarray | None:
    """Returns f32[codes], how near each code is, for `pictures`; None without a codec."""
    return None if codec is None else np.asarray(depth_vq.levels(*codec))


def _decode(cfg: DepthVQConfig, params: Params, codes: np.ndarray) -> np.ndarray:
    if cfg.grid != depth.GRID or cfg.num_codes <= codes.max():
        raise ValueError(
            f"codec: grid {cfg.grid} and {cfg.num_codes} codes, expected {depth.GRID} and more than {codes.max()}, "
            "which the model predicted. Take the codec that it was trained with."
        )
    return np.asarray(_run(cfg, params, codes[None]))[0]


_run = jax.jit(depth_vq.decode, static_argnums=0)
