"""What checks of data report: one finding per fault, with how bad it is and where it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

SEVERITIES = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
      severity: "error" for data that must not be trained on, "warning" for what a person should look at, "note".
      check: name of the check, the same word for all faults of a kind.
      message: what is wrong, with numbers.
      episode: the dataset's own number, None where the whole dataset is meant.
      frame: frame in the episode, None where the whole episode is meant.
    """

    severity: str
    check: str
    message: str
    episode: int | None = None
    frame: int | None = None

    def __post_init__(self):
        assert self.severity in SEVERITIES

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        if self.episode is None:
            return "dataset"
        return f"episode {self.episode}" + ("" if self.frame is None else f", frame {self.frame}")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return dataclasses.asdict(self)


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """Returns how many there are of each severity."""
    counts = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        counts[finding.severity] += 1
    return counts


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Returns them worst first, then by check and place."""
    return sorted(
        findings,
        key=lambda f: (
            SEVERITIES.index(f.severity),
            f.check,
            -1 if f.episode is None else f.episode,
            -1 if f.frame is None else f.frame,
        ),
    )
