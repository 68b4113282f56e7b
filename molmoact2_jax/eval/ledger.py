"""The rounds of a rollout on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.train import recipe

Json = Mapping[str, Any]


class Ledger:
    """A line of JSON per finished round in `rounds.jsonl`, and in `protocol.json` what they have in common.

    Attributes:
      records: of the rounds that are finished, in their order.
    """

    def __init__(self, directory: pathlib.Path | None, identity: Json):
        """Opens or begins a rollout.

        Args:
          directory: of the rollout; None keeps nothing.
          identity: JSON values that must be the same for episodes to belong together.

        Raises:
          ValueError: the directory holds a rollout that differs; says in what.
        """
        self.records: list[dict[str, Any]] = []
        self._directory = directory
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        words, path = json.loads(json.dumps(identity)), directory / "protocol.json"
        if path.exists() or (directory / "rollout.json").exists():
            _require_same(directory, json.loads(path.read_text("utf-8")) if path.exists() else {}, words)
            self.records = _read(directory / "rounds.jsonl")
        else:
            _replace(path, words)

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a round."""
        self.records.append(record)
        if self._directory is not None:
            with (self._directory / "rounds.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self, result: Json) -> Json:
        """Writes the result of all rounds to `rollout.json`; returns that of the first time it was finished."""
        if self._directory is None:
            return result
        path = self._directory / "rollout.json"
        if not path.exists():
            _replace(path, result)
        return json.loads(path.read_text("utf-8"))


def _require_same(directory: pathlib.Path, before: Json, now: Json) -> None:
    if lines := recipe.difference(before, now):
        raise ValueError(
            f"{directory}: holds a rollout of another protocol ({'; '.join(lines)}), expected the same to go on. "
            "Choose another directory."
        )


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rounds; one whose line was cut off by the interruption is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _replace(path: pathlib.Path, value: Any) -> None:
    unfinished = path.with_suffix(".incomplete")
    unfinished.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(unfinished, path)
