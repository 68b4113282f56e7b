"""Examines a whole dataset before it is trained on: finds damage, says how bad it is, and what to quarantine."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from molmoact2_jax.data import checks, findings, picture_checks, quarantine, table
from molmoact2_jax.data.findings import Finding
from molmoact2_jax.data.source import EpisodeSource, SampleError


@dataclasses.dataclass(frozen=True)
class Options:
    """How thorough an examination is.

    Attributes:
      horizon: frames of an action chunk; 0 takes one second.
      every: decodes every n-th frame of each camera; 1 decodes all, 0 none.
      workers: threads.
      budget: part of the frames with errors, 0 to 1, above which the examination stops.
    """

    horizon: int = 0
    every: int = 1
    workers: int = 2
    budget: float = 0.05


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
      dataset, digest: name and identity of the source.
      episodes, frames: of the source.
      examined: episodes that were looked at; fewer where the examination stopped.
      quarantined: frames that the quarantine file named before; they were left out.
      found: worst first.
      entries: what to quarantine because of the errors.
      lost: part of the frames that have errors.
      stopped: why the examination ended early, "" where it did not.
      unit: what episodes are called: "record" in a multimodal set, where each counts as one frame.
    """

    dataset: str
    digest: str
    episodes: int
    frames: int
    examined: int
    quarantined: int
    found: tuple[Finding, ...]
    entries: tuple[quarantine.Entry, ...]
    lost: float
    stopped: str
    unit: str = "episode"

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity."""
        return findings.count(self.found)

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return dataclasses.asdict(self) | {"counts": self.counts}


@dataclasses.dataclass(frozen=True)
class _Episode:
    position: int
    found: list[Finding]
    fingerprint: str
    sizes: picture_checks.Sizes


def examine(
    source: EpisodeSource,
    options: Options,
    known: Sequence[quarantine.Entry] = (),
    progress: Callable[[int, int], None] = table.silent,
) -> Report:
    """Runs every check on a source.

    What the quarantine file names is left out, so that a second examination after quarantining is clean.

    Args:
      source: opened with the quarantine file, if there is one.
      options: how thorough.
      known: the entries of that file.
      progress: called with (frames examined, all frames).
    """
    lost = {entry.episode for entry in known if entry.dataset == source.name and entry.frame is None}
    found = [*_unreadable(source), *checks.dataset(source), *checks.indices(source)]
    found = [finding for finding in found if finding.episode not in lost]
    ledger = _Ledger(source, options.budget)
    ledger.add(found)
    episodes = []
    for episode in _each(source, options, lost):
        episodes.append(episode)
        found += episode.found
        ledger.add(episode.found)
        last = int(source.episode_starts[episode.position] + source.episode_lengths[episode.position])
        progress(last, source.num_frames)
        if ledger.exceeded:
            break
    found += checks.duplicates(source, [episode.fingerprint for episode in episodes])
    found += picture_checks.sizes({int(source.episode_ids[e.position]): e.sizes for e in episodes})
    return Report(
        dataset=source.name,
        digest=source.digest,
        episodes=source.num_episodes,
        frames=source.num_frames,
        examined=len(episodes),
        quarantined=int((~source.valid).sum()),
        found=tuple(findings.ordered(found)),
        entries=tuple(_entries(source.name, found)),
        lost=ledger.lost,
        stopped=ledger.exceeded,
    )


def _unreadable(source: EpisodeSource) -> Iterator[Finding]:
    for problem in source.problems:
        yield Finding("error", "unreadable", problem.reason, problem.episode, problem.frame)


def _each(source: EpisodeSource, options: Options, lost: Collection[int]) -> Iterator[_Episode]:
    """Examines episodes in threads, a bounded number ahead, and yields them in order; `lost` ones are left out."""
    usual = checks.scales(source)
    horizon = options.horizon or max(1, round(source.fps))
    positions = iter(range(source.num_episodes))
    with concurrent.futures.ThreadPoolExecutor(max(1, options.workers)) as pool:

        def examine_one(position: int) -> _Episode:
            if int(source.episode_ids[position]) in lost:
                return _Episode(position, [], "", {})
            return _episode(source, position, usual, horizon, options.every)

        def start(count: int) -> list[concurrent.futures.Future]:
            chosen = itertools.islice(positions, count)
            return [pool.submit(examine_one, p) for p in chosen]

        waiting = collections.deque(start(2 * max(1, options.workers)))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(start(1))
        finally:
            for future in waiting:
                future.cancel()


def _episode(source: EpisodeSource, position: int, usual: checks.Scales, horizon: int, every: int) -> _Episode:
    length, start = int(source.episode_lengths[position]), int(source.episode_starts[position])
    valid = source.valid[start : start + length]
    if length and not valid.any():
        return _Episode(position, [], "", {})
    found = list(checks.episode(source, position, usual, horizon))
    sizes: picture_checks.Sizes = {}
    if every and length:
        frames = [frame for frame in range(0, length, every) if valid[frame]]
        seen, sizes = picture_checks.episode(source, position, frames)
        found += seen
        found += _depth(source, position, frames)
    fresh = [finding for finding in found if finding.frame is None or valid[finding.frame]]
    mark = checks.fingerprint(source, position) if length else ""
    return _Episode(position, _collapsed(fresh, int(valid.sum())), mark, sizes)


def _depth(source: EpisodeSource, position: int, frames: Sequence[int]) -> Iterator[Finding]:
    """Reads the depth codes of every frame, where the dataset has them."""
    cameras = source.cameras_of(position)
    for frame in frames:
        try:
            if source.depth_codes(position, frame, cameras) is None:
                return
        except SampleError as error:
            yield Finding("error", "depth codes", error.reason, int(source.episode_ids[position]), frame)


def _collapsed(found: Sequence[Finding], frames: int) -> list[Finding]:
    """Makes one finding of those that a check has at every frame of an episode."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.severity, finding.check), []).append(finding)
    result: list[Finding] = []
    for group in groups.values():
        places = {finding.frame for finding in group if finding.frame is not None}
        if frames > 1 and len(places) == frames:
            message = f"in all {frames} frames, the first: {group[0].message}"
            result.append(dataclasses.replace(group[0], frame=None, message=message))
        else:
            result += group
    return result


def _entries(dataset: str, found: Sequence[Finding]) -> Iterator[quarantine.Entry]:
    """Yields what the errors spoil: whole episodes, and frames of the others."""
    errors = [f for f in found if f.severity == "error" and f.episode is not None]
    whole = {f.episode for f in errors if f.frame is None}
    named: set[tuple[int | None, int | None]] = set()
    for finding in errors:
        place = finding.episode, finding.frame
        if place in named or (finding.frame is not None and finding.episode in whole):
            continue
        named.add(place)
        assert finding.episode is not None
        yield quarantine.Entry(dataset, finding.episode, finding.frame, f"{finding.check}: {finding.message}")


class _Ledger:
    """Counts the frames that errors spoil against the budget. An episode that cannot be read counts as an average one.

    Attributes:
      exceeded: what is over budget, "" while nothing is.
    """

    def __init__(self, source: EpisodeSource, budget: float):
        self._source, self._budget = source, budget
        self._lengths = dict(zip(source.episode_ids.tolist(), source.episode_lengths.tolist()))
        readable = max(1, int((source.episode_lengths > 0).sum()))
        self._average = max(1, round(source.num_frames / readable))
        self._total = source.num_frames + self._average * int((source.episode_lengths == 0).sum())
        self._spoiled = 0
        self.exceeded = ""

    @property
    def lost(self) -> float:
        """Part of the frames that have errors."""
        return self._spoiled / max(1, self._total)

    def add(self, found: Sequence[Finding]) -> None:
        """Counts what an episode's errors spoil."""
        for entry in _entries(self._source.name, found):
            whole = self._lengths.get(entry.episode, 0) or self._average
            self._spoiled += whole if entry.frame is None else 1
        if self.lost > self._budget and not self.exceeded:
            self.exceeded = (
                f"{self._source.name}: {self._spoiled} of {self._total} frames have errors ({self.lost:.1%}), above "
                f"the budget of {self._budget:.1%}. Repair the dataset, leave out episodes, or raise the budget."
            )


def quarantine_new(path: str | os.PathLike[str], report: Report) -> int:
    """Appends what a report would quarantine to a file, leaving out what it names already. Returns the lines added."""
    known = {(entry.dataset, entry.episode, entry.frame) for entry in quarantine.read(path)}
    fresh = [entry for entry in report.entries if (entry.dataset, entry.episode, entry.frame) not in known]
    quarantine.append(path, fresh)
    return len(fresh)


def unusable(name: str, reason: str) -> Report:
    """Returns the report of a dataset that cannot even be opened."""
    found = (Finding("error", "cannot be opened", reason),)
    return Report(name, "", 0, 0, 0, 0, found, (), 1.0, reason)


def grouped(report: Report) -> dict[tuple[str, str], list[Finding]]:
    """Returns the findings by (severity, check), worst first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.found:
        groups.setdefault((finding.severity, finding.check), []).append(finding)
    return groups
