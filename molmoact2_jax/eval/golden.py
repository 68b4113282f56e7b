"""A checkpoint beside arrays that the released implementation recorded with it. Source: `golden/README.md`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.checkpoint import hf
from molmoact2_jax.serve import observe
from molmoact2_jax.serve.policy import Policy

TOLERANCE = 1e-5  # of the largest value of a stage, float32 on a CPU
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared array.

    Attributes:
      name: of the recorded array.
      error: largest difference, over the largest recorded value; or how many entries differ.
      tolerance: what the error may be; 0 where every entry must be equal to the bit.
      note: what else is worth showing.
    """

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Oracle:
    """A checkpoint loaded in float32 beside the recorded arrays and the cases they belong to."""

    def __init__(self, checkpoint: str | pathlib.Path, archive: str | pathlib.Path, **options: Any):
        """Reads both; `archive` is an .npz file with a .json of the same name beside it, `options` are a policy's.

        Raises:
          FileNotFoundError, ValueError: either is absent or damaged.
        """
        self.arrays, self.cases = _read(pathlib.Path(archive))
        self.cfg, params = hf.load(checkpoint, jnp.float32)
        self.host = observe.Host.load(pathlib.Path(checkpoint), self.cfg)
        self.policy = Policy(self.host, params, **options)
        self.params = self.policy.params

    def observation(self, index: int, frame: str = "") -> Observation:
        """Returns the recorded observation of a case, with the first camera of one of its later frames."""
        case, prefix = self.cases[index], f"case{index}/"
        pictures = [self.arrays[f"{prefix}image{j}"] for j in range(case["n_images"])]
        if frame and f"{prefix}{frame}/image0" in self.arrays:
            pictures[0] = self.arrays[f"{prefix}{frame}/image0"]
        return Observation(pictures, case["task"], self.arrays[f"{prefix}state"], case["tag"])

    def check(self, name: str, ours: Any, tolerance: float = TOLERANCE) -> Row:
        """Compares what we compute with the array recorded under a name."""
        return compare(name, ours, self.arrays[name], tolerance)


def compare(name: str, ours: Any, recorded: np.ndarray, tolerance: float = TOLERANCE) -> Row:
    """Compares one array; shapes must agree but for leading axes of size 1."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    a, b = (x.reshape(x.shape[next((i for i, n in enumerate(x.shape) if n != 1), x.ndim) :]) for x in (ours, recorded))
    if a.shape != b.shape:
        return Row(name, float("inf"), tolerance, f"shape {ours.shape}, recorded {recorded.shape}")
    if a.dtype.kind in "iub" or tolerance == 0:
        return Row(name, float((a != b).sum()), 0.0)
    scale = float(np.abs(b).max()) or 1.0
    return Row(name, float(np.abs(a.astype(np.float64) - b).max()) / scale, tolerance)


def _read(archive: pathlib.Path) -> tuple[Arrays, list[dict[str, Any]]]:
    described = archive.with_suffix(".json")
    for path in (archive, described):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected an archive and its description side by side.")
    try:
        return dict(np.load(archive, allow_pickle=False)), json.loads(described.read_text())["cases"]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{archive}: {error}, expected recorded arrays with their cases. Record them again."
        ) from error
