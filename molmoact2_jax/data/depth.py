"""Update masks and buffers of depth codes: which cells of the 10x10 grid saw their picture change (`io.md` 6.2, 6.3).

Offline annotation and inference resize the picture differently, as released: `annotation_mask` is bilinear without
antialiasing (OpenCV), `update_mask` with (Pillow).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = 320  # pixels along each side of the compared pictures
GRID = 10  # cells along each side
CELL = SIZE // GRID  # pixels along each side of a cell
NUM_CELLS = GRID * GRID
NUM_CODES = 128
THRESHOLD = 0.996  # cosine similarity below which a cell has changed


def update_mask(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Says which cells must be predicted anew at inference.

    Args:
      previous: u8[H, W, 3], the first camera's picture of the call before; its size may differ from `current`.
      current: u8[H, W, 3], the first camera's picture now.

    Returns:
      bool[100], raster order, true = changed. A cell that was or is all black counts as unchanged, as released.

    Raises:
      ValueError: a picture is not u8[H, W, 3].
    """
    return similarity(_antialiased(previous, "previous"), _antialiased(current, "current")) < np.float32(THRESHOLD)


def annotation_mask(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Says which cells of a training frame changed since the frame before; arguments and result as `update_mask`."""
    return similarity(_sampled(previous, "previous"), _sampled(current, "current")) < np.float32(THRESHOLD)


def similarity(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Returns f32[100], the cosine between the raw pixels of each cell; 1 where either is black.

    Products, sums and roots are float32 over cells in (row, column, channel) order: at the threshold the rounding of
    the released implementation decides, and this order has the same.

    Args:
      previous: u8[320, 320, 3].
      current: u8[320, 320, 3].
    """
    a, b = _cells(previous), _cells(current)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / (norms + np.float32(1e-12))
    return np.where(norms < np.float32(1e-8), np.float32(1), cosine)


def update_buffer(buffer: np.ndarray | None, codes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Carries a buffer of codes one frame forward: changed cells take the new code, the others keep theirs.

    Args:
      buffer: i16[100] after the frame before, None on the first frame of an episode.
      codes: i16[100], codes of this frame.
      mask: bool[100], true = changed.

    Returns:
      [100] in the dtype of `codes`.
    """
    return codes.copy() if buffer is None else np.where(mask, codes, buffer).astype(codes.dtype)


def _cells(picture: np.ndarray) -> np.ndarray:
    blocks = picture.reshape(GRID, CELL, GRID, CELL, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks, np.float32).reshape(NUM_CELLS, CELL * CELL * 3)


def _antialiased(picture: np.ndarray, name: str) -> np.ndarray:
    _check(picture, "update_mask", name)
    if picture.shape[:2] == (SIZE, SIZE):
        return picture
    return np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _sampled(picture: np.ndarray, name: str) -> np.ndarray:
    import cv2

    _check(picture, "annotation_mask", name)
    return cv2.resize(np.ascontiguousarray(picture), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def _check(picture: np.ndarray, where: str, name: str) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"{where}: {name} is {picture.dtype}{list(picture.shape)}, expected uint8[H, W, 3]. "
            "Convert pictures to RGB bytes first."
        )
