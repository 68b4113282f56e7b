"""Pictures to bytes and back: JPEG and PNG, u8[H, W, 3] in RGB."""

from __future__ import annotations

import cv2
import numpy as np

_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a picture as TFDS and LeRobot do: grey becomes RGB, transparency and orientation tags are dropped.

    Returns:
      u8[H, W, 3].

    Raises:
      ValueError: no bytes, bytes that end before the picture does (OpenCV would paint the rest grey), or no picture.
    """
    if not encoded:
        raise ValueError("the picture has 0 bytes")
    if encoded[:2] == b"\xff\xd8" and b"\xff\xd9" not in encoded[-64:]:
        raise ValueError(f"the JPEG of {len(encoded)} bytes has no end marker, so it was cut short")
    if encoded[:4] == b"\x89PNG" and b"IEND" not in encoded[-64:]:
        raise ValueError(f"the PNG of {len(encoded)} bytes has no end chunk, so it was cut short")
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), _DECODE)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode {len(encoded)} bytes: {error}") from error
    if picture is None:
        raise ValueError(f"{len(encoded)} bytes starting with {encoded[:8]!r} are no JPEG, PNG or WebP")
    return picture


def encode_png(picture: np.ndarray) -> bytes:
    """Returns a PNG of u8[H, W, 3] or u8[H, W] that decodes to the same pixels."""
    return _encode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def encode_jpeg(picture: np.ndarray, quality: int = 95) -> bytes:
    """Returns a JPEG of u8[H, W, 3] with 4:2:0 chroma, quality 1 to 100."""
    return _encode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(extension: str, picture: np.ndarray, options: list[int]) -> bytes:
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise ValueError(
            f"encode{extension}: {picture.dtype}{list(picture.shape)}, expected uint8 [H, W, 3] or [H, W]."
        )
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, encoded = cv2.imencode(extension, colours, options)
    if not done:
        raise ValueError(f"encode{extension}: OpenCV refused {list(picture.shape)}.")
    return encoded.tobytes()
