"""Exact frames of video files by time, and their encoder. PyAV; one decoder thread per file, as that is cheapest.

Damage that FFmpeg notices is refused. AV1 has no checksums: bytes that changed inside a frame can decode to a wrong
picture without a sign. Repacked datasets are hashed, so repack from a copy that is known to be good.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import os
import pathlib
import threading
import typing
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import av
import numpy as np

TOLERANCE = 1e-3  # seconds, as released (`io.md` 8.1)
_BACK = 1.0  # seconds to seek further back where a file's index points past the frame


class Decoder:
    """One open file. Reads forward while that decodes fewer frames than a seek would.

    Not for two threads at once; `Decoders` takes care of that.
    """

    def __init__(self, path: str):
        """Opens a file.

        Raises:
          ValueError: no such file, or one that FFmpeg cannot open, for example because it was cut short.
        """
        self.path = path
        self._packets: Generator[av.Packet, None, None] | None = None
        self._frames: Iterator[av.VideoFrame] | None = None
        self._container: Any = None
        try:
            self._container = av.open(path)
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1  # there is no context where the file's tables were cut off
        except (av.FFmpegError, OSError, IndexError, AttributeError) as error:
            raise ValueError(f"{path}: no video can be opened: {error}") from error
        self._base = float(self._stream.time_base or 0)
        entries = self._stream.index_entries
        self._keys = sorted(entry.timestamp * self._base for entry in entries if entry.is_keyframe)
        self._last: av.VideoFrame | None = None
        self._now, self._first = 0.0, -1.0  # times of the last frame, and of the first since the last seek
        self._damaged = False

    @property
    def num_frames(self) -> int:
        """Frames that the file's own index lists, 0 where it has none."""
        return len(self._stream.index_entries)

    def read(self, times: Sequence[float], tolerance: float = TOLERANCE) -> np.ndarray:
        """Decodes the frames shown at some times.

        Args:
          times: seconds from the start of the file, in any order.
          tolerance: how far, in seconds, a frame's own time may be from the one asked for.

        Returns:
          u8[len(times), H, W, 3], RGB.

        Raises:
          ValueError: there is no frame at a time, or it cannot be decoded without error.
        """
        found: dict[int, np.ndarray] = {}
        for place in sorted(range(len(times)), key=lambda i: times[i]):
            try:
                frame = self._seek(times[place], tolerance)
            except (av.FFmpegError, EOFError, OverflowError) as error:
                self._forget()
                raise ValueError(f"{self.path}: cannot decode at {times[place]:.4f} s: {error}") from error
            found[place] = frame.to_ndarray(format="rgb24")
        return np.stack([found[i] for i in range(len(times))])

    def close(self) -> None:
        self._forget()
        if self._container is not None:
            self._container.close()

    def __del__(self) -> None:
        self.close()

    def _forget(self) -> None:
        """Ends the reading of packets: PyAV loses memory for each such generator, and file, that is only dropped."""
        if self._packets is not None:
            self._packets.close()
        self._packets = self._frames = self._last = None

    def _seek(self, time: float, tolerance: float) -> av.VideoFrame:
        if self._last is None or time < self._now - tolerance or self._key(time) > self._now:
            self._start(time)
        frame = self._advance(time, tolerance)
        for start in (time - _BACK, 0.0):
            if self._first > time + tolerance and time >= 0:
                self._start(max(start, 0.0))
                frame = self._advance(time, tolerance)
        if frame is None or self._now > time + tolerance:
            nearest = "the video ends before" if frame is None else f"the next is at {self._now:.4f} s"
            raise ValueError(f"{self.path}: no frame within {tolerance} s of {time:.4f} s, {nearest}")
        if self._damaged:
            raise ValueError(f"{self.path}: the frame at {time:.4f} s is damaged")
        return frame

    def _start(self, time: float) -> None:
        """Moves to the key frame at or before a time."""
        self._forget()
        self._container.seek(round(time / self._base), backward=True, stream=self._stream)
        packets = self._packets = self._container.demux(self._stream)
        self._frames = (frame for packet in packets for frame in typing.cast(list[av.VideoFrame], packet.decode()))
        self._first, self._damaged = -1.0, False

    def _advance(self, time: float, tolerance: float) -> av.VideoFrame | None:
        """Decodes up to the first frame not before a time, None at the end of the file."""
        assert self._frames is not None
        while self._last is None or self._now < time - tolerance:
            self._last = next(self._frames, None)
            if self._last is None:
                return None
            if self._last.pts is None:
                raise ValueError(f"{self.path}: frames without time stamps")
            self._now = self._last.pts * self._base
            self._first = self._now if self._first < 0 else self._first
            # FFmpeg marks the frame it patched up, not those predicted from it until the next key frame.
            self._damaged = self._last.is_corrupt or (self._damaged and not self._last.key_frame)
        return self._last

    def _key(self, time: float) -> float:
        """Returns the time of the last key frame at or before one, by the file's index."""
        place = bisect.bisect_right(self._keys, time + self._base)
        return self._keys[place - 1] if place else 0.0


class Decoders:
    """The files decoded last, kept open. Threads may share it; it pickles empty."""

    def __init__(self, limit: int = 16):
        self.limit = limit
        self._open: collections.OrderedDict[str, tuple[threading.Lock, Decoder]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, times: Sequence[float], tolerance: float = TOLERANCE) -> np.ndarray:
        """Decodes frames of a file; see `Decoder.read`."""
        lock, decoder = self._get(path)
        with lock:
            return decoder.read(times, tolerance)

    def _get(self, path: str) -> tuple[threading.Lock, Decoder]:
        with self._lock:
            found = self._open.pop(path, None) or (threading.Lock(), Decoder(path))
            self._open[path] = found
            if len(self._open) > self.limit:
                self._open.popitem(last=False)  # closed when its last reader lets it go
            return found

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Encoder:
    """Writes one video under a temporary name; it appears under its own when closed.

    Settings are LeRobot's: AV1 or H264, 4:2:0, a key frame every second frame so that single frames decode fast.
    """

    def __init__(self, path: str | os.PathLike[str], fps: int, size: tuple[int, int], codec: str = "libsvtav1"):
        """Starts a video. `size` is (height, width), both even; `codec` is "libsvtav1" or "libx264"."""
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would print its settings on standard error
        self.path = pathlib.Path(path)
        self._unfinished = self.path.with_name(f"{self.path.name}.incomplete")
        self._container = av.open(os.fspath(self._unfinished), "w", format="mp4")
        options = {"g": "2", "crf": "30"} | ({"preset": "10"} if codec == "libsvtav1" else {})
        self._stream = typing.cast(av.VideoStream, self._container.add_stream(codec, rate=fps, options=options))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"

    def add(self, picture: np.ndarray) -> None:
        """Appends u8[H, W, 3]."""
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self._unfinished.replace(self.path)


def concatenate(
    paths: Sequence[str | os.PathLike[str]], into: str | os.PathLike[str], lengths: Sequence[float]
) -> None:
    """Joins videos of equal settings without encoding them again.

    Args:
      paths: the videos.
      into: the file to make.
      lengths: seconds after which each one's successor begins.
    """
    unfinished = pathlib.Path(f"{os.fspath(into)}.incomplete")
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(av.open(os.fspath(unfinished), "w", format="mp4"))
        start, target = 0.0, None
        for path, length in zip(paths, lengths):
            with av.open(os.fspath(path)) as source:
                stream = source.streams.video[0]
                target = target or output.add_stream_from_template(stream, opaque=True)
                _copy(source, stream, output, target, start)
            start += length
    unfinished.replace(into)


def _copy(source: Any, stream: Any, output: Any, target: Any, start: float) -> None:
    shift = round(start / stream.time_base)
    for packet in source.demux(stream):
        if packet.dts is not None:
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = target
            output.mux(packet)
