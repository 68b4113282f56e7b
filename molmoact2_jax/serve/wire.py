"""What both wires share: which values and arrays may travel. Numbers only: no objects, no pickle, no foreign types."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_DEPTH = 12  # of lists and dicts inside each other
MAX_NDIM = 6
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_LEAVES = (str, bytes, bool, int, float, type(None), np.ndarray, np.generic)


class WireError(ValueError):
    """Bytes that are not what a wire carries."""


def array(dtype: Any, shape: Any, data: bytes, where: str) -> np.ndarray:
    """Builds an array over received bytes; nothing is allocated for a shape that they do not fill.

    Args:
      dtype: NumPy's name of a boolean, integer or float of at most 8 bytes, such as "<f4".
      shape: non-negative integers, at most `MAX_NDIM`.
      data: as many bytes as dtype and shape say, in C order.
      where: what errors call it.

    Returns:
      An array that is read-only where `data` is.

    Raises:
      WireError: another dtype (objects among them), shape or number of bytes.
    """
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise WireError(
            f"{where}: dtype {_short(dtype)}, expected booleans, integers or floats such as '|u1' or '<f4'."
        )
    kind = np.dtype(dtype)
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes) or len(shape) > MAX_NDIM:
        raise WireError(f"{where}: shape {_short(shape)}, expected at most {MAX_NDIM} sizes.")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WireError(f"{where}: shape {_short(shape)}, expected sizes that are not negative.")
    needed = math.prod(shape) * kind.itemsize
    if not isinstance(data, bytes) or len(data) != needed:
        given = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise WireError(f"{where}: {given}, expected {needed} bytes for {dtype}{list(shape)}. Was it cut short?")
    return np.frombuffer(data, kind).reshape(shape)


def check(value: Any, where: str, depth: int = MAX_DEPTH) -> None:
    """Refuses a decoded value that is nested too deep or holds what no wire carries.

    Raises:
      WireError: names the place.
    """
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise WireError(f"{where}: nested deeper than {MAX_DEPTH}, expected a flat message.")
        for item in value.values() if isinstance(value, dict) else value:
            check(item, where, depth - 1)
        if isinstance(value, dict) and (bad := [key for key in value if not isinstance(key, str)]):
            raise WireError(f"{where}: key {_short(bad[0])}, expected text.")
    elif not isinstance(value, _LEAVES):
        raise WireError(f"{where}: {type(value).__name__}, expected numbers, text, lists, dicts or arrays.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
