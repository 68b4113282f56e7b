"""Points, tracks and boxes as the model writes them ("html-v2"): a tag with coordinates from 0 to 1000.

<points coords="1 1 512 330 2 640 118">mugs</points>     picture 1: point 1, point 2
<points coords="1 1 100 200;2 2 300 400">mugs</points>   pictures 1 and 2, numbers running on
<tracks coords="0.0 1 500 500;0.5 1 510 498">cup</tracks>   object 1 at 0.0 s and 0.5 s
<boxes coords="1 1 100 200 300 400">door</boxes>         picture 1, box 1: left, top, right, bottom
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

NONE = "There are none."
SCALE = 1000

_TAG = re.compile(r'<(?:points|tracks).*? coords="([0-9\t:;, .]+)"/?>')
_BOXES = re.compile(r'<boxes.*? coords="([0-9\t:;, .]+)"/?>')
_GROUP = re.compile(r"(?:^|\t|:|,|;)([0-9.]+) ([0-9. ]+)")
_POINT = re.compile(r"([0-9]+) ([0-9]{3,4}) ([0-9]{3,4})")
_BOX = re.compile(r"[0-9]+ ([0-9]{3,4}) ([0-9]{3,4}) ([0-9]{3,4}) ([0-9]{3,4})")


@dataclasses.dataclass(frozen=True)
class Mark:
    """One point.

    Attributes:
      place: the picture's number, from 1, or a frame's time in seconds.
      x, y: pixels from the left and from the top.
      number: of the point in its answer, or of the object tracked. `points` numbers afresh.
    """

    place: float
    x: float
    y: float
    number: int = 0


Size = tuple[float, float]  # width and height of a picture in pixels


def points(label: str, marks: Sequence[Mark], sizes: Sequence[Size], *, alt: str = "") -> str:
    """Writes points in pictures, each picture's from left to right, numbered from 1 through all; or that none is there.

    Args:
      label: what is pointed at.
      marks: points outside a picture are moved to its edge.
      sizes: of each picture, or one for all.
      alt: a description, left out where empty.

    Raises:
      ValueError: a mark is in a picture that has no size.
    """
    return _tag("points", _numbered(_rows(marks, sizes)), "{:.0f}", label, alt)


def video_points(label: str, marks: Sequence[Mark], size: Size, *, alt: str = "") -> str:
    """Writes points in the frames of a video, whose places are seconds; otherwise as `points`."""
    return _tag("points", _numbered(_rows(marks, [size])), "{:.1f}", label, alt)


def tracks(label: str, marks: Sequence[Mark], size: Size, *, alt: str = "") -> str:
    """Writes where objects are over time; an object keeps its number."""
    return _tag("tracks", sorted(_rows(marks, [size]), key=lambda row: row[:2]), "{:.1f}", label, alt)


def by_appearance(marks: Sequence[Mark], size: Size) -> list[Mark]:
    """Numbers the objects of a video from 1 as they appear, those of one frame from left to right.

    So the released trainer numbers tracks, whatever a dataset calls its objects.
    """
    first: dict[int, int] = {}
    places = [(row[0], *row[2:], mark.number) for row, mark in zip(_rows(marks, [size]), marks)]
    for *_, number in sorted(places):
        first.setdefault(number, len(first) + 1)
    return [dataclasses.replace(mark, number=first[mark.number]) for mark in marks]


def boxes(label: str, corners: np.ndarray, size: Size) -> str:
    """Writes boxes of one picture from the top down; or that none is there.

    Args:
      label: what the boxes hold.
      corners: f[N, 4], left, top, right, bottom in pixels; sides outside the picture are moved to its edge.
      size: of the picture.
    """
    if not len(corners):
        return NONE
    scaled = np.rint(SCALE * np.asarray(corners, np.float64) / [*size, *size]).clip(0, SCALE).astype(int)
    rows = sorted(scaled.tolist(), key=lambda box: (box[1], box[0]))
    coords = " ".join(" ".join([str(i), *(f"{side:03d}" for side in box)]) for i, box in enumerate(rows, 1))
    return f'<boxes coords="1 {coords}">{label}</boxes>'


ANSWERS: dict[str, Callable[[str, int], str]] = {
    "point": lambda tag, count: tag,
    "point_then_count": lambda tag, count: f"Counting the {tag} shows a total of {count}.",
    "count_then_point": lambda tag, count: f"There are {count} {tag}.",
    "count": lambda tag, count: str(count),
}


def answer(mode: str, tag: str, count: int) -> str:
    """Returns the sentence around a tag, `mode` being a key of `ANSWERS`; with a count of 0 that there are none."""
    if mode not in ANSWERS:
        raise ValueError(f"mode: {mode!r}, expected one of {sorted(ANSWERS)}.")
    return ANSWERS[mode](tag, count) if count else NONE


def parse(text: str, sizes: Sequence[Size]) -> list[Mark]:
    """Reads the points and tracks of an answer; what is outside its picture or malformed is left out.

    Args:
      text: the answer, any number of tags among other words.
      sizes: of each picture, or one for all (a video).
    """
    found = []
    for coords in _TAG.findall(text):
        for place, entries in _GROUP.findall(coords):
            if (size := _size(sizes, place)) is None:
                continue
            for number, x, y in _POINT.findall(entries):
                if max(int(x), int(y)) <= SCALE:
                    pixels = int(x) * size[0] / SCALE, int(y) * size[1] / SCALE
                    found.append(Mark(float(place), *pixels, int(number)))
    return found


def parse_boxes(text: str, size: Size) -> np.ndarray:
    """Reads f64[N, 4], the boxes of an answer in pixels; those outside the picture or malformed are left out."""
    groups = (entries for coords in _BOXES.findall(text) for _, entries in _GROUP.findall(coords))
    rows = [box for entries in groups for box in _BOX.findall(entries)]
    scaled = np.asarray(rows, np.float64).reshape(-1, 4)
    return scaled[(scaled <= SCALE).all(axis=1)] * [*size, *size] / SCALE


_Row = tuple[float, int, int, int]  # place, number, x and y of 0..1000


def _rows(marks: Sequence[Mark], sizes: Sequence[Size]) -> list[_Row]:
    rows = []
    for mark in marks:
        if (size := _size(sizes, f"{mark.place:f}")) is None:
            raise ValueError(f"points: a mark in picture {mark.place:g}, expected 1 to {len(sizes)}.")
        x, y = (min(max(round(SCALE * v / side), 0), SCALE) for v, side in zip((mark.x, mark.y), size))
        rows.append((mark.place, mark.number, x, y))
    return rows


def _numbered(rows: list[_Row]) -> list[_Row]:
    ordered = sorted(rows, key=lambda row: (row[0], *row[2:]))
    return [(place, i, x, y) for i, (place, _, x, y) in enumerate(ordered, 1)]


def _size(sizes: Sequence[Size], place: str) -> Size | None:
    """Returns the size at a place, None where the place is no number or no picture has it."""
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", place):
        return None
    if len(sizes) == 1:
        return sizes[0]
    index = float(place) - 1
    return sizes[int(index)] if index in range(len(sizes)) else None


def _tag(name: str, rows: list[_Row], place: str, label: str, alt: str) -> str:
    if not rows:
        return NONE
    groups = itertools.groupby(rows, key=lambda row: row[0])
    coords = ";".join(
        " ".join([place.format(at), *(f"{number} {x:03d} {y:03d}" for _, number, x, y in group)])
        for at, group in groups
    )
    described = f' alt="{alt}"' if alt else ""
    return f'<{name}{described} coords="{coords}">{label}</{name}>'
