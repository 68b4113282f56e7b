"""The files of a depth companion: a LeRobot dataset's tables with three more columns (`io.md` 6.2)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import depth, lerobot_meta

CODES, BUFFER, MASK = "depth_codes", "buffer_codes", "depth_updated_mask"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a companion is made with; it is written into `meta/info.json` and may not change on the way.

    Attributes:
      camera: whose pictures decide what changed; the maps should be of the same view.
      kind: "metric" or "disparity", see `depth_maps.prepare`.
      codec: identity of the weights that made the codes.
      estimator: what made the maps: "recorded", or the name of a network.
      input_size: side in pixels at which the network saw the pictures, None without one.
    """

    camera: str
    kind: str
    codec: str
    estimator: str = "recorded"
    input_size: int | None = None

    def described(self) -> dict[str, Any]:
        """Returns the entry `depth_vae` of `info.json`: the released keys, and two of ours."""
        return {
            "vae_image_size": depth.SIZE,
            "patch_size": depth.CELL,
            "grid_h": depth.GRID,
            "grid_w": depth.GRID,
            "num_tokens": depth.NUM_CODES,
            "cosine_threshold": depth.THRESHOLD,
            "depth_encoder": self.estimator,
            "depth_input_size": self.input_size,
            "image_key": self.camera,
            "codec": self.codec,
            "kind": self.kind,
        }


@dataclasses.dataclass(frozen=True)
class Columns:
    """Rows of a companion. `codes` and `buffer` are i16[T, 100], `mask` is bool[T, 100], true = updated."""

    codes: np.ndarray
    buffer: np.ndarray
    mask: np.ndarray


def recognise(directory: pathlib.Path) -> bool:
    """Tells whether a directory is a companion rather than a dataset."""
    path = directory / "meta" / "info.json"
    return path.exists() and "depth_vae" in json.loads(path.read_text("utf-8"))


def begin(meta: lerobot_meta.Meta, directory: pathlib.Path, settings: Settings) -> None:
    """Copies the metadata, adds ours and links the videos; or checks that this was done with the same settings."""
    path = directory / "meta" / "info.json"
    described = settings.described()
    if path.exists():
        given = json.loads(path.read_text("utf-8")).get("depth_vae")
        if given != described:
            raise ValueError(
                f"{directory}: begun with {given}, expected {described}. Remove it or choose another --to."
            )
        return
    others = shutil.ignore_patterns("info.json")
    shutil.copytree(meta.root / "meta", directory / "meta", dirs_exist_ok=True, ignore=others)
    videos = meta.root / "videos"
    if videos.exists():
        with contextlib.suppress(FileExistsError):  # another run of the same companion was faster
            (directory / "videos").symlink_to(os.path.relpath(videos.resolve(), directory.resolve()))
    info = json.loads((meta.root / "meta" / "info.json").read_text("utf-8"))
    kinds = {CODES: "int16", BUFFER: "int16", MASK: "bool"}
    info["features"] |= {n: {"dtype": kind, "shape": [depth.NUM_CELLS], "names": None} for n, kind in kinds.items()}
    info["depth_vae"] = described
    unfinished = path.with_name(f"info.json.{os.getpid()}")
    unfinished.write_text(json.dumps(info, indent=2), "utf-8")
    unfinished.replace(path)


def joined(rows: pa.Table, columns: Columns) -> pa.Table:
    """Appends the columns to a table of the dataset."""
    metadata = dict(rows.schema.metadata or {})
    features = {}
    for name, values in ((CODES, columns.codes), (BUFFER, columns.buffer), (MASK, columns.mask)):
        kind = pa.bool_() if values.dtype == bool else pa.int16()
        offsets = pa.array(np.arange(len(values) + 1) * depth.NUM_CELLS, pa.int32())
        rows = rows.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), kind)))
        features[name] = {"feature": {"dtype": str(values.dtype), "_type": "Value"}, "_type": "Sequence"}
    if b"huggingface" in metadata:  # the `datasets` library believes this description, not the file
        described = json.loads(metadata[b"huggingface"])
        described["info"]["features"] |= features
        metadata[b"huggingface"] = json.dumps(described).encode()
    return rows.replace_schema_metadata(metadata or None)


def write(rows: pa.Table, path: pathlib.Path) -> None:
    """Writes a table; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    pq.write_table(rows, unfinished, row_group_size=1024, write_page_checksum=True)
    unfinished.replace(path)


def read(directory: pathlib.Path, path: str, episode: int) -> Columns:
    """Reads the rows of one episode from a table of a companion."""
    found = pq.read_table(directory / path, columns=[CODES, BUFFER, MASK], filters=[("episode_index", "==", episode)])
    stacked = [np.array(found[name].to_pylist()) for name in (CODES, BUFFER, MASK)]
    return Columns(stacked[0].astype(np.int16), stacked[1].astype(np.int16), stacked[2].astype(bool))
