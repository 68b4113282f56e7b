"""Where a run lies: in a directory, or at an address of object storage such as `gs://bucket/runs/mine`.

Addresses are those of Google Cloud Storage, since Orbax writes arrays there and to file systems and nowhere else. An
object is written whole or not at all; there is no appending, and moving a folder is moving its objects one by one.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from etils import epath

Where: TypeAlias = "str | os.PathLike[str]"
Path: TypeAlias = "pathlib.Path | epath.Path"


def is_address(where: Where) -> bool:
    """Whether a text or path is an address, not a directory of this machine."""
    return "://" in os.fspath(where)


def path(where: Where) -> Path:
    """Returns a path with the methods of `pathlib.Path` to a directory or an address.

    Raises:
      ValueError: an address of another kind of storage, or what is needed to read this one is not installed.
    """
    text = os.fspath(where)
    if not is_address(text):
        return pathlib.Path(text)
    if not text.startswith("gs://"):
        raise ValueError(
            f"storage: {text}, expected a directory or gs://BUCKET/PATH: Orbax writes checkpoints to no other object "
            "storage. Mount the bucket as a file system and name its directory."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"storage: {text} is read and written with gcsfs, which is not installed. "
            "Run pip install 'molmoact2-jax[gcs]'."
        )
    os.environ["EPATH_USE_TF"] = "false"  # where TensorFlow is installed, it would be imported for this
    import fsspec
    from etils import epath

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # other processes write there, too
    return epath.Path(text)


def local(where: Where) -> pathlib.Path:
    """Returns the path to a directory of this machine.

    Raises:
      ValueError: it is an address.
    """
    if is_address(where):
        raise ValueError(
            f"storage: {os.fspath(where)} holds no run, and only runs are read from an address: a checkpoint in the "
            "released format must be in a directory. Copy it to this machine, or correct the address."
        )
    return pathlib.Path(where)


def near(where: Path) -> pathlib.Path:
    """Returns a directory itself, or a copy of the few files at an address, which goes when the process ends."""
    if not is_address(where):
        return pathlib.Path(where)
    folder = tempfile.TemporaryDirectory(prefix="molmoact2-")
    atexit.register(folder.cleanup)
    copy(where, pathlib.Path(folder.name))
    return pathlib.Path(folder.name)


def copy(source: Path, target: Path) -> None:
    """Copies a file or a folder, from or to an address."""
    if source.is_dir():
        for entry in source.iterdir():
            copy(entry, target / entry.name)
        return
    if not is_address(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
