"""The small files of a run, which are appended to: metrics, events, pictures, profiles, damaged samples.

In a directory they are written where they belong. An object store cannot append, so there they lie in a folder of this
machine, and those that have changed are copied whole. The copies are made before every checkpoint and, between them,
with a report once a minute: a process that is killed loses what it has written since, and a run that resumes from a
checkpoint has every line up to it.
"""

from __future__ import annotations

import logging
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable
from typing import Protocol

from molmoact2_jax.checkpoint import storage

SECONDS = 60.0  # between copies; the files of a long run have tens of megabytes, all of which are copied
_log = logging.getLogger(__name__)


class Folder(Protocol):
    """A context manager; `path` is the directory to write to."""

    path: pathlib.Path

    def __enter__(self) -> Folder: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Puts everything where it belongs."""

    def push(self) -> None:
        """Puts everything that was written where it belongs."""

    def push_if_due(self) -> None:
        """Does so unless it was done within the last minute."""


def create(run_dir: storage.Path, resumed: Iterable[str]) -> Folder:
    """Opens the folder of this process.

    Args:
      run_dir: directory or address.
      resumed: names of the files that this process goes on with where the run has them already.
    """
    return Mirror(run_dir, resumed) if storage.is_address(run_dir) else InPlace(pathlib.Path(run_dir))


class InPlace:
    """A directory that needs no copies."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> InPlace:
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to do."""

    def push(self) -> None:
        """Has nothing to do."""

    def push_if_due(self) -> None:
        """Has nothing to do."""


class Mirror:
    """A folder of this machine whose files are copied to an address."""

    def __init__(self, address: storage.Path, resumed: Iterable[str]):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="molmoact2-run-"))
        self._address, self._last = address, time.monotonic()
        for name in resumed:
            if (address / name).is_file():
                storage.copy(address / name, self.path / name)
        self._copied = dict(self._present())

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Copies what is left, and removes the folder.

        Raises:
          OSError: it cannot be copied; the folder stays. Not raised in place of an error that is on its way.
        """
        reason = self._attempt()
        if not reason:
            shutil.rmtree(self.path)
        elif kind is None:
            raise OSError(f"run {self._address}: its files could not be copied ({reason}). They are in {self.path}.")

    def push(self) -> None:
        """Copies what has changed; what cannot be copied is reported, and the next push tries again."""
        if reason := self._attempt():
            _log.error("run %s: files could not be copied (%s); the next report tries again", self._address, reason)

    def push_if_due(self) -> None:
        """Pushes unless that was done within the last minute."""
        if time.monotonic() - self._last >= SECONDS:
            self.push()

    def _attempt(self) -> str:
        """Returns why it failed."""
        self._last = time.monotonic()
        try:
            for name, version in self._present().items():
                if self._copied.get(name) != version:
                    storage.copy(self.path / name, self._address / name)
                    self._copied[name] = version
        except Exception as error:  # clients of object stores have errors of their own
            return f"{type(error).__name__}: {str(error)[:300]}"
        return ""

    def _present(self) -> dict[str, tuple[int, int]]:
        """Lists the files by name, with size and time of their last change."""
        found = {path.relative_to(self.path).as_posix(): path.stat() for path in self.path.rglob("*") if path.is_file()}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in sorted(found.items())}
