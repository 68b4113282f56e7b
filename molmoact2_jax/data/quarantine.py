"""The quarantine file: samples that nobody draws, a JSON object per line, appended by loaders and by the doctor."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from molmoact2_jax.data.source import SampleError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line. `episode` is the dataset's own number; `frame` is None for the whole episode."""

    dataset: str
    episode: int
    frame: int | None
    reason: str


def entry(error: SampleError) -> Entry:
    """Returns the line for an error."""
    return Entry(error.dataset, error.episode, error.frame, error.reason)


def read(path: str | os.PathLike[str]) -> tuple[Entry, ...]:
    """Reads a quarantine file; one that does not exist yet is empty.

    Raises:
      ValueError: a line is not of this form. A last line without its end is one being written and is left out.
    """
    file = pathlib.Path(path)
    lines = file.read_text("utf-8").split("\n")[:-1] if file.exists() else []
    return tuple(_parse(line, file, number) for number, line in enumerate(lines, 1) if line.strip())


def _parse(line: str, file: pathlib.Path, number: int) -> Entry:
    try:
        return Entry(**json.loads(line))
    except (TypeError, ValueError) as error:
        form = '{"dataset": ..., "episode": ..., "frame": ... or null, "reason": ...}'
        raise ValueError(f"{file}, line {number}: {line[:80]!r}, expected {form}. Correct or remove it.") from error


def append(path: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
    """Adds lines, each in one write, so that processes may share a file."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for item in entries:
            os.write(descriptor, (json.dumps(dataclasses.asdict(item)) + "\n").encode())
    finally:
        os.close(descriptor)


def valid(entries: Iterable[Entry], dataset: str, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns bool[N], false on the frames of a dataset that the entries name.

    Args:
      entries: what `read` returned.
      dataset: name of the source.
      ids: i64[E], the dataset's numbers of its episodes.
      lengths: i64[E].
    """
    mask = np.ones(int(lengths.sum()), bool)
    starts = np.cumsum(lengths) - lengths
    positions = {int(number): i for i, number in enumerate(ids)}
    for item in entries:
        i = positions.get(item.episode) if item.dataset == dataset else None
        if i is not None and item.frame is None:
            mask[starts[i] : starts[i] + lengths[i]] = False
        elif i is not None and item.frame is not None and 0 <= item.frame < lengths[i]:
            mask[starts[i] + item.frame] = False
    return mask
