"""Reading safetensors tensor by tensor with plain reads, so that a file never sits in memory whole."""

from __future__ import annotations

import json
import math
import mmap
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Reader:
    """The tensors of a checkpoint directory (one file, or shards with an index), or of a single file.

    Raises:
      FileNotFoundError: no safetensors, or shards that the index names and the directory lacks (all are listed).
      ValueError: a file that is cut short, or whose header is not safetensors; the message names it.
    """

    def __init__(self, path: str | pathlib.Path):
        self._entries: dict[str, tuple[pathlib.Path, int, dict[str, Any]]] = {}
        for file in _files(pathlib.Path(path)):
            start, header = _header(file)
            self._entries.update({name: (file, start, entry) for name, entry in header.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, (_, _, entry) in self._entries.items()}

    def dtype(self, name: str) -> np.dtype:
        """Returns the stored type of a tensor."""
        return np.dtype(DTYPES[self._entries[name][2]["dtype"]])

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Reads one tensor, or some rows of its first axis, into memory of its own."""
        file, start, entry = self._entries[name]
        shape, kind = entry["shape"], np.dtype(DTYPES[entry["dtype"]])
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        row = kind.itemsize * math.prod(shape[1:])
        begin = start + entry["data_offsets"][0] + first * row
        out = fresh((last - first) * row)
        with open(file, "rb", buffering=0) as handle:
            handle.seek(begin)
            view, done = out.data, 0
            while done < len(out):
                count = handle.readinto(view[done:])
                if not count:
                    raise ValueError(f"{file}: ends inside tensor {name}, expected {len(out)} bytes. Copy it again.")
                done += count
        return out.view(kind).reshape([last - first, *shape[1:]] if shape else [])


def fresh(size: int) -> np.ndarray:
    """Returns zeros u8[size] in pages of their own.

    They return to the system as soon as the array is dropped: an allocator would keep much of what threads read into
    and drop again. Whole pages are also aligned so that JAX takes them over on a CPU instead of copying them.
    """
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)[:size]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{index}: shards {missing} are not in the directory. Copy them beside it.")
        return [path / name for name in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    raise FileNotFoundError(f"{path}: no model.safetensors and no model.safetensors.index.json, expected one of them.")


def _header(file: pathlib.Path) -> tuple[int, dict[str, Any]]:
    size = file.stat().st_size
    with open(file, "rb") as handle:
        first = handle.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > size - 8:
            raise ValueError(
                f"{file}: {size} bytes with a header of {length}, expected a safetensors file. Copy it again."
            )
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: header is not JSON ({error}), expected a safetensors file.") from error
    header.pop("__metadata__", None)
    if strange := [f"{name} {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in DTYPES]:
        raise ValueError(f"{file}: {', '.join(strange[:8])}, expected one of {', '.join(DTYPES)}. Convert the tensors.")
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(
            f"{file}: {size} bytes, expected {8 + length + end} from its header. It is cut short; copy it again."
        )
    return 8 + length, header
