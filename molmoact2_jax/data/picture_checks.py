"""Checks of the pictures of one episode: every frame decodes, has one size, shows something, and moves."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from molmoact2_jax.data.findings import Finding
from molmoact2_jax.data.source import EpisodeSource, SampleError

WINDOW = 32  # frames decoded at a time
BLANK = 2.0  # standard deviation, of 0..255, below which a picture shows nothing
FROZEN = 1.0  # seconds of equal pictures while the robot moves


@dataclasses.dataclass
class View:
    """What was seen of one camera: `frames` that decoded, their sizes and checksums, those that show nothing."""

    frames: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    checksums: list[int] = dataclasses.field(default_factory=list)
    blank: list[int] = dataclasses.field(default_factory=list)

    def add(self, frame: int, picture: np.ndarray) -> None:
        """Takes a decoded picture, u8[H, W, 3]."""
        self.frames.append(frame)
        self.sizes.append((picture.shape[0], picture.shape[1]))
        self.checksums.append(zlib.crc32(np.ascontiguousarray(picture).data))
        if picture[::4, ::4].std() < BLANK:
            self.blank.append(frame)


Sizes = dict[str, tuple[int, int]]  # {camera: (height, width)}


def episode(source: EpisodeSource, position: int, frames: Sequence[int]) -> tuple[list[Finding], Sizes]:
    """Decodes some frames of all cameras of an episode.

    Args:
      source: the dataset.
      position: of the episode in it.
      frames: in ascending order.

    Returns:
      What is wrong, and the size of each camera's first picture.
    """
    number = int(source.episode_ids[position])
    filmed = source.cameras_of(position)
    findings: list[Finding] = []
    absent = [camera for camera in source.cameras if camera not in filmed]
    if absent:
        findings.append(Finding("note", "cameras", f"not filmed by {absent}", number))
    views = {camera: View() for camera in filmed}
    for camera, view in views.items():
        for start in range(0, len(frames), WINDOW):
            findings += _decode(source, position, camera, frames[start : start + WINDOW], view)
        findings += _judge(source, position, camera, view)
    findings += _same_view(number, views)
    return findings, {camera: view.sizes[0] for camera, view in views.items() if view.sizes}


def _decode(source: EpisodeSource, position: int, camera: str, frames: Sequence[int], view: View) -> Iterator[Finding]:
    """Decodes frames together; where that fails, one by one."""
    number = int(source.episode_ids[position])
    try:
        for frame, picture in zip(frames, source.frames(position, frames, [camera])[camera], strict=True):
            view.add(frame, picture)
    except SampleError as error:
        if len(frames) == 1:
            yield Finding("error", "picture", error.reason, number, frames[0])
            return
        for frame in frames:
            yield from _decode(source, position, camera, [frame], view)


def _judge(source: EpisodeSource, position: int, camera: str, view: View) -> Iterator[Finding]:
    number = int(source.episode_ids[position])
    if len(set(view.sizes)) > 1:
        usual = max(set(view.sizes), key=view.sizes.count)
        for frame, size in zip(view.frames, view.sizes):
            if size != usual:
                message = f"{camera}: {size[0]} x {size[1]} pixels, elsewhere {usual[0]} x {usual[1]}"
                yield Finding("error", "picture size", message, number, frame)
    for frame in view.blank:
        yield Finding("warning", "blank picture", f"{camera}: one colour", number, frame)
    blank = set(view.blank)
    for start, stop in _runs(view.checksums):
        frames = view.frames[start:stop]
        if (frames[-1] - frames[0]) / source.fps >= FROZEN and frames[0] not in blank:
            moved = np.ptp(source.column("state", position)[frames[0] : frames[-1] + 1], axis=0).any()
            if moved:
                message = f"{camera}: the picture stands still to frame {frames[-1]} while the robot moves"
                yield Finding("warning", "frozen picture", message, number, frames[0])


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of maximal runs of equal values."""
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            yield start, i
            start = i


def _same_view(number: int, views: dict[str, View]) -> Iterator[Finding]:
    names = [name for name, view in views.items() if view.frames]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            one, other = views[a], views[b]
            if one.checksums == other.checksums and one.frames == other.frames and not one.blank:
                yield Finding("warning", "cameras", f"{a} and {b} show the same pictures", number)


def sizes(episodes: Mapping[int, Sizes]) -> Iterator[Finding]:
    """Finds cameras whose pictures change size between episodes; `episodes` is by number."""
    seen: dict[str, dict[tuple[int, int], int]] = {}
    for number, cameras in episodes.items():
        for camera, size in cameras.items():
            seen.setdefault(camera, {}).setdefault(size, number)
    for camera, found in seen.items():
        if len(found) > 1:
            listed = ", ".join(f"{h} x {w} from episode {number}" for (h, w), number in found.items())
            yield Finding("warning", "picture size", f"{camera}: {listed}")
