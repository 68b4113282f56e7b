"""Whole video files: what their headers say, and the frames on screen at given seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

from molmoact2_jax.data import clips, video


class Header(NamedTuple):
    """What a video's header says: seconds it runs, and pixels."""

    duration: float
    width: int
    height: int


def header(path: str) -> Header:
    """Reads the header of a video.

    Raises:
      ValueError: no such file, or one that cannot be opened or has no duration.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                return Header(float(stream.duration * stream.time_base), stream.width, stream.height)
            if container.duration is not None:
                return Header(container.duration / av.time_base, stream.width, stream.height)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path}: no video can be opened: {error}") from error
    raise ValueError(f"{path}: no duration in the header. Write `duration` into the record.")


def starts(path: str) -> np.ndarray:
    """Returns f64[T], when each frame comes on screen, from the packets alone.

    Raises:
      ValueError: there is no frame, or the file cannot be read to its end.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            times = [float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None and p.size]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path}: no video can be read: {error}") from error
    if not times:
        raise ValueError(f"{path}: a video without frames")
    return np.sort(np.asarray(times, np.float64))


def show(decoders: video.Decoders, path: str, seconds: Sequence[float]) -> np.ndarray:
    """Decodes the frame on screen at each second from the start of the video, the last one after its end.

    Returns:
      u8[len(seconds), H, W, 3].

    Raises:
      ValueError: the file is damaged.
    """
    begins = starts(path)
    ends = np.append(begins[1:], np.inf) - begins[0]
    shown = clips.frames_at(np.asarray(seconds, np.float64), ends)
    return decoders.read(path, begins[shown].tolist())
