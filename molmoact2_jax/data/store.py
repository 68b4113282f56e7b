"""Arrays of a dataset kept as `.npy` files beside it, memory mapped: built once, shared by all readers of a host."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)
_FORMAT = 2


class Store:
    """Named arrays and a JSON value in one directory. Pickles as its path."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        manifest = json.loads((directory / "manifest.json").read_text())
        self.meta: dict[str, Any] = manifest["meta"]
        self._files: dict[str, tuple[str, str, list[int]]] = manifest["files"]
        self._maps: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = self._map(*self._files[name])
        return self._maps[name]

    def _map(self, file: str, dtype: str, shape: list[int]) -> np.ndarray:
        # np.load parses the header as Python, which fails now and then in threads of Python 3.11. We know the header.
        kind, path = np.dtype(dtype), self.directory / file
        size = math.prod(shape) * kind.itemsize
        if size == 0:  # cannot be mapped
            return np.zeros(shape, kind)
        # A plain view slices faster than the map.
        return np.asarray(np.memmap(path, kind, "r", path.stat().st_size - size, tuple(shape)))

    def names(self) -> list[str]:
        return sorted(self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.directory,)


def stamp(files: Iterable[pathlib.Path], *what: object) -> str:
    """Returns what a cache was made from: its format, sizes and times of files (-1 for missing ones), settings."""
    facts: list[object] = [_FORMAT, *what]
    for path in files:
        stat = path.stat() if path.exists() else None
        facts.append((path.name, stat.st_size, stat.st_mtime_ns) if stat else (path.name, -1, -1))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def digest(files: Iterable[pathlib.Path], root: pathlib.Path, *what: object) -> str:
    """Returns the identity of a dataset's content by names and sizes, without times, so that copies agree."""
    facts: list[object] = [*what]
    facts += [(path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else -1) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def place(dataset: pathlib.Path, name: str, cache: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the directory of a cache: in `cache` if given, beside the data if that is writable, else in the home.

    Args:
      dataset: root of the dataset.
      name: name of the cache within the dataset.
      cache: directory that holds the caches of many datasets, or None.
    """
    beside = dataset / ".molmoact2"
    if cache is None and os.access(beside if beside.exists() else dataset, os.W_OK):
        return beside / name
    home = pathlib.Path(cache or pathlib.Path.home() / ".cache" / "molmoact2_jax")
    return home / f"{dataset.name}-{hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:12]}" / name


def load(directory: pathlib.Path, stamp: str) -> Store | None:
    """Returns the cache made from exactly what `stamp` says, None where there is none."""
    path = _path(directory, stamp)
    return Store(path) if (path / "manifest.json").exists() else None


def save(directory: pathlib.Path, stamp: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Store:
    """Writes a cache under a temporary name and renames it; the first of two writers wins, both wrote the same."""
    path = _path(directory, stamp)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=path.parent))
    files = {name: (f"{i}.npy", a.dtype.str, a.shape) for i, (name, a) in enumerate(arrays.items())}
    for name, (file, _, _) in files.items():
        np.save(fresh / file, np.ascontiguousarray(arrays[name]), allow_pickle=False)
    (fresh / "manifest.json").write_text(json.dumps({"meta": meta, "files": files}))
    try:
        fresh.rename(path)
    except OSError:
        _log.info("%s: another process has just made this cache.", path)
        shutil.rmtree(fresh, ignore_errors=True)
    _forget(directory, path)
    return Store(path)


def _path(directory: pathlib.Path, stamp: str) -> pathlib.Path:
    return directory.with_name(f"{directory.name}-{stamp[:16]}")


def _forget(directory: pathlib.Path, current: pathlib.Path) -> None:
    """Removes caches of earlier states of the files, a day after they were made: their readers are gone by then."""
    for old in directory.parent.glob(f"{directory.name}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if old != current and time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
