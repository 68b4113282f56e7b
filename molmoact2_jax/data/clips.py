"""Videos to what the image encoder reads: which frames are shown, when, and their crops."""

from __future__ import annotations

import numpy as np

from molmoact2_jax import config
from molmoact2_jax.data import images


def indices(count: int, fps: float, settings: config.ProcessorConfig) -> np.ndarray:
    """Returns i64[N], the frames shown of a video whose frames are at hand; the first and the last are among them.

    A video slower than `video_fps` repeats frames, as released.

    Args:
      count: frames of the video, at least 1.
      fps: its frames per second; frame i is shown at i / fps seconds.
      settings: at most `video_frames` are shown and at most `video_fps` a second.
    """
    if count <= 2:
        return np.arange(count)
    if count / fps > (settings.video_frames - 1) / settings.video_fps:
        return np.linspace(0, count - 1, min(settings.video_frames, count)).astype(np.int64)
    steps = np.rint(np.arange(0.0, count - 1, fps / settings.video_fps)).astype(np.int64)
    return steps if steps[-1] == count - 1 else np.append(steps, count - 1)


def times(duration: float, settings: config.ProcessorConfig) -> np.ndarray:
    """Returns f64[N], the seconds at which a video file of that duration is shown, its start and end among them."""
    if duration > (settings.video_frames - 1) / settings.video_fps:
        return np.linspace(0, duration, settings.video_frames)
    return np.append(np.arange(0, duration, 1 / settings.video_fps), duration)


def frames_at(seconds: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns i64[N], the frame on screen at each time.

    Args:
      seconds: f64[N].
      ends: f64[T], ascending, when each frame gives way to the next; later times show the last frame.
    """
    return np.minimum(np.searchsorted(ends, seconds, side="right"), len(ends) - 1)


def crops_of(frames: np.ndarray, settings: config.ProcessorConfig) -> images.Crops:
    """Prepares u8[N, H, W, 3], the frames shown: one crop each, pooled over wider windows than pictures.

    The grid is that of one frame, as `prompt.video_tokens` takes it.
    """
    side = settings.image_size // settings.patch_size
    pooled = -(-side // settings.video_pooling)
    window = images.pooling_indices(side, settings.video_pooling)
    crops = [images.Crops(images.resize(f, settings.image_size)[None], window, (0, 0, 0, 0)) for f in frames]
    return images.Crops(*images.join(crops, side * side), (pooled, pooled, 0, 0))
