"""Networks whose parameters are one flat dict under released names: one safetensors file each, checked name by name."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from molmoact2_jax.checkpoint.safetensors_io import Reader

Shapes = Mapping[str, tuple[int, ...]]


def open_file(path: str | os.PathLike[str], what: str, conversion: str) -> tuple[pathlib.Path, Reader]:
    """Opens a safetensors file.

    Args:
      path: the file.
      what: it should hold, for errors.
      conversion: module that says how to convert the released pickle.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected {what} as safetensors.")
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: expected a .safetensors file. {conversion} says how to convert the released pickle.")
    return file, Reader(file)


def read(file: pathlib.Path, reader: Reader, expected: Shapes, optional: Collection[str]) -> dict[str, jax.Array]:
    """Reads every tensor as float32.

    Raises:
      ValueError: tensors that are missing (unless optional), unexpected or misshapen, all listed.
    """
    found = reader.shapes
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [f"{n} {found[n]} for {shape}" for n, shape in expected.items() if found.get(n, shape) != shape]
    if missing or unexpected or misshapen:
        raise ValueError(f"{file}: missing {missing}, unexpected {unexpected}, misshapen {misshapen}, expected none.")
    return {name: jnp.asarray(reader.read(name), jnp.float32) for name in found}


def save(params: Mapping[str, jax.Array], path: str | os.PathLike[str]) -> None:
    """Writes the tensors under their names, in one rename."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.incomplete")
    safetensors.numpy.save_file({name: np.asarray(value) for name, value in params.items()}, unfinished)
    unfinished.rename(file)
