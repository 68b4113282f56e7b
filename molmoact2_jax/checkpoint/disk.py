"""Whether the disk has room for a checkpoint."""

from __future__ import annotations

import os
import shutil


class FullError(OSError):
    """A checkpoint does not fit on the disk; the ones before are untouched."""


def free(directory: str | os.PathLike[str]) -> int | None:
    """Free bytes of the disk that holds a directory; None where that has no meaning (object stores)."""
    return shutil.disk_usage(directory).free if os.path.isdir(directory) else None


def caused(error: BaseException | None) -> bool:
    """Whether a full disk is among the causes of an error of the writers."""
    while error is not None:
        if any(text in str(error) for text in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED: Error writing")):
            return True
        error = error.__cause__ or error.__context__
    return False
