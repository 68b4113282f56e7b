"""What a checkpoint must hold to be the one that was saved: names, shapes and sums of the bits of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.nn import paths

Tree = Any

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class OtherModelError(Exception):
    """The checkpoint holds other arrays than the model has."""


def checksums(arrays: Tree) -> dict[str, int]:
    """Sums the bits of each array as unsigned words modulo 2^32: the same for the same contents on any mesh."""
    sums = _sums(jax.tree.leaves(arrays))
    return dict(zip(paths.names(arrays), (int(s) for s in jax.device_get(sums)), strict=True))


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_bits(x).sum(dtype=jnp.uint32) for x in leaves]


def _bits(x: jax.Array) -> jax.Array:
    return x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])


def shapes(arrays: Tree) -> dict[str, list[Any]]:
    """Lists shape and dtype of every array by its path, in JSON."""
    named = zip(paths.names(arrays), jax.tree.leaves(arrays), strict=True)
    return {name: [list(x.shape), str(x.dtype)] for name, x in named}


def check_model(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: Any) -> None:
    """Compares two results of `shapes`.

    Raises:
      OtherModelError: they differ; the first few differences are named.
    """
    differences = [
        f"{name} is {saved.get(name, 'absent')}, expected {wanted.get(name, 'absent')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OtherModelError(
            f"checkpoint {where}: {'; '.join(differences[:3])}{more}. It is of another model or of other frozen "
            "parameters: give the configuration it was made with, or another run_dir."
        )
