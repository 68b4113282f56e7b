"""msgpack with NumPy arrays, byte for byte as `openpi-client` writes and reads it, decoded within bounds."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from molmoact2_jax.serve import wire

_MOST_ITEMS = 1 << 16  # of one list or dict; pictures and chunks travel as arrays


def pack(value: Any) -> bytes:
    """Writes a value.

    Raises:
      TypeError: it holds something that the wire does not carry, such as an array of objects.
    """
    return msgpack.packb(value, default=_encode)


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        raise TypeError(f"cannot send {type(value).__name__} {getattr(value, 'dtype', '')}, expected numbers or text")
    if isinstance(value, np.ndarray):
        # C order, as `tobytes` writes it
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def unpack(data: bytes, where: str = "message") -> Any:
    """Reads a value; arrays are read-only views of `data`.

    Raises:
      WireError: cut short, followed by more, nested too deep, or with anything but numbers, text, lists, dicts and
        arrays of numbers.
    """
    try:
        value = msgpack.unpackb(
            data, object_hook=_decode, ext_hook=_no_extension, max_array_len=_MOST_ITEMS, max_map_len=_MOST_ITEMS
        )
    except wire.WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise wire.WireError(f"{where}: cannot read msgpack: {str(error) or type(error).__name__}.") from error
    wire.check(value, where)
    return value


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return wire.array(value.get(b"dtype"), value.get(b"shape"), value.get(b"data"), "array")  # type: ignore[arg-type]
    if b"__npgeneric__" in value:
        number = value.get(b"data")
        if not isinstance(number, bool | int | float):
            raise wire.WireError(f"number: {type(number).__name__}, expected a number.")
        kind = wire.array(value.get(b"dtype"), [0], b"", "number").dtype
        return kind.type(number)
    return value


def _no_extension(code: int, data: bytes) -> Any:
    raise wire.WireError(f"message: extension type {code} of {len(data)} bytes, expected none.")
