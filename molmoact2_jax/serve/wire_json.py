"""JSON with NumPy arrays as `json_numpy` writes and reads them, decoded within bounds; pictures as base64 text."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from molmoact2_jax.serve import wire

MAX_PIXELS = 1 << 24  # of a compressed picture, which a few bytes can claim to be huge
_FORMATS = ("PNG", "JPEG", "WEBP")


def dumps(value: Any, *, plain: bool = False) -> str:
    """Writes a value on one line; `plain` writes arrays as nested lists instead of base64.

    Raises:
      TypeError: it holds something that the wire does not carry.
    """
    return json.dumps(value, default=_list if plain else _encode)


def _list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else _encode(value)


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        raise TypeError(f"cannot send {type(value).__name__} {getattr(value, 'dtype', '')}, expected numbers or text")
    text = base64.b64encode(value.tobytes()).decode()
    return {"__numpy__": text, "dtype": value.dtype.str, "shape": list(value.shape)}


def loads(text: str | bytes, where: str = "body") -> Any:
    """Reads a value.

    Raises:
      WireError: not JSON, nested too deep, or with an array whose dtype, shape or bytes do not agree.
    """
    try:
        value = json.loads(text, object_hook=_decode)
    except wire.WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise wire.WireError(f"{where}: cannot read JSON: {error}.") from error
    wire.check(value, where)
    return value


def _decode(value: dict[str, Any]) -> Any:
    if "__numpy__" not in value:
        return value
    array = wire.array(value.get("dtype"), value.get("shape"), _bytes(value["__numpy__"], "array"), "array")
    return array if array.ndim else array[()]


def _bytes(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise wire.WireError(f"{where}: {error}, expected base64.") from error


def picture(text: str, where: str) -> np.ndarray:
    """Reads a picture that was sent as base64, or as a data URL, of a PNG, JPEG or WebP file. Paths are not read.

    Returns:
      u8[H, W, 3], RGB.

    Raises:
      WireError: not such a picture, or one of more than `MAX_PIXELS`.
    """
    data = _bytes(text.partition(",")[2] if text.startswith("data:") else text, where)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise wire.WireError(f"{where}: {image.width}x{image.height}, expected at most {MAX_PIXELS} pixels.")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, wire.WireError):
            raise
        raise wire.WireError(f"{where}: {error}. Send a PNG, JPEG or WebP file as base64, or an array.") from error
