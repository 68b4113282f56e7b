"""Which of a robot's cameras an example shows, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from molmoact2_jax.data import source


def resolve(keys: Sequence[str], dataset: source.EpisodeSource) -> tuple[str, ...]:
    """Finds a tag's cameras in a dataset, by name or by the last part of it (`observation.images.top`, `top`).

    Raises:
      ValueError: the dataset lacks one.
    """
    by_end = {camera.rsplit(".", 1)[-1]: camera for camera in dataset.cameras}
    found = [key if key in dataset.cameras else by_end.get(key.rsplit(".", 1)[-1]) for key in keys]
    if None in found:
        raise ValueError(
            f"{dataset.name}: cameras {list(dataset.cameras)}, expected {list(keys)} from the tag. Name the dataset's "
            "cameras in the tag, or rename them in the dataset."
        )
    return tuple(camera for camera in found if camera is not None)


def episode_order(name: str, seed: int, episode: int, cameras: Sequence[str]) -> np.ndarray:
    """Returns i64[n], the order of an episode's cameras, the same in every epoch (`io.md` 8.3)."""
    words = "\n".join([name, str(seed), str(episode), *cameras])
    start = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little")
    return np.random.default_rng(start).permutation(len(cameras))
