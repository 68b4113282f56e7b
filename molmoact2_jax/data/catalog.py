"""Opens a dataset of any format by its path."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

from molmoact2_jax.data import lerobot, oxe, repack, repacked, rlds, table
from molmoact2_jax.data.source import EpisodeSource


def parse(spec: str) -> tuple[str, tuple[int, ...] | None]:
    """Splits `PATH@0-9,12` into the path and the numbers of episodes, None without a selection.

    Raises:
      ValueError: the selection is not made of numbers and ranges.
    """
    path, at, selection = spec.rpartition("@")
    if not at:
        return spec, None
    numbers: list[int] = []
    for part in selection.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit()) or int(last or first) < int(first):
            raise ValueError(f"{spec}: selection {part!r}, expected numbers and ranges such as 0-9,12.")
        numbers += range(int(first), int(last or first) + 1)
    return path, tuple(dict.fromkeys(numbers))


def open_source(
    spec: str | os.PathLike[str],
    meaning: oxe.Row | oxe.Tag | str | None = None,
    options: table.Options = table.Options(),  # noqa: B008 (frozen)
    *,
    depth: Mapping[str, str | os.PathLike[str]] | None = None,
    progress: Callable[[int, int], None] = table.silent,
) -> EpisodeSource:
    """Opens an RLDS, LeRobot or repacked dataset.

    Args:
      spec: path, with `@0-9,12` for some episodes.
      meaning: an `oxe.Row` for RLDS, an `oxe.Tag` for LeRobot, or the name of one; None for repacked datasets, which
        carry their meaning.
      options: name, quarantine, cache; `episodes` too where the path selects none.
      depth: depth companions of a LeRobot dataset by camera.
      progress: called with (done, all) while an index is built.

    Raises:
      ValueError: nothing that can be read there, a meaning of the wrong kind, or companions of another format.
    """
    path, episodes = parse(os.fspath(spec))
    options = options if episodes is None else dataclasses.replace(options, episodes=episodes)
    root = pathlib.Path(path)
    if (root / repack.MANIFEST).exists():
        _refuse_companions(path, depth)
        return repacked.RepackedSource(root, options)
    if (root / "meta" / "info.json").exists():
        return lerobot.LeRobotSource(root, _tag(meaning, path), options, depth=depth, progress=progress)
    if (root / "features.json").exists() or list(root.glob("*/features.json")):
        _refuse_companions(path, depth)
        return rlds.RLDSSource(root, _row(meaning, path), options, progress=progress)
    expected = f"expected meta/info.json (LeRobot), features.json (RLDS) or {repack.MANIFEST}"
    raise ValueError(f"{path}: no dataset, {expected}. Check the path.")


def _refuse_companions(path: str, depth: Mapping[str, str | os.PathLike[str]] | None) -> None:
    if depth:
        raise ValueError(
            f"{path}: depth companions {dict(depth)}, expected none: LeRobot datasets alone take them; repacked "
            "ones bring their codes along. Leave them out."
        )


def _tag(meaning: oxe.Row | oxe.Tag | str | None, path: str) -> oxe.Tag:
    found = oxe.TAGS.get(meaning) if isinstance(meaning, str) else meaning
    if not isinstance(found, oxe.Tag):
        raise ValueError(
            f"{path}: a LeRobot dataset read as {meaning!r}, expected an oxe.Tag or one of {list(oxe.TAGS)}."
        )
    return found


def _row(meaning: oxe.Row | oxe.Tag | str | None, path: str) -> oxe.Row:
    found = oxe.ROWS.get(meaning) if isinstance(meaning, str) else meaning
    if not isinstance(found, oxe.Row):
        raise ValueError(
            f"{path}: an RLDS dataset read as {meaning!r}, expected an oxe.Row or one of {list(oxe.ROWS)}."
        )
    return found
