"""Depth maps of a dataset's own pictures, by Depth Anything V2."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np

from molmoact2_jax.checkpoint import depth_anything as files
from molmoact2_jax.data import depth_maps
from molmoact2_jax.data.depth_companion import Settings
from molmoact2_jax.data.source import EpisodeSource, SampleError
from molmoact2_jax.models import depth_anything
from molmoact2_jax.models.depth_anything import DepthAnythingConfig, Params

NAMES = {384: "vits", 768: "vitb", 1024: "vitl"}  # released names by width


@dataclasses.dataclass(frozen=True)
class NetworkMaps:
    """`depth_maps.Maps` of one camera, a picture at a time as the released annotation works."""

    source: EpisodeSource
    camera: str
    cfg: DepthAnythingConfig
    params: Params

    def __call__(self, episode: int, frames: Sequence[int]) -> list[np.ndarray | None]:
        (position,) = np.flatnonzero(self.source.episode_ids == episode)
        return [self._estimate(int(position), frame) for frame in frames]

    def _estimate(self, position: int, frame: int) -> np.ndarray | None:
        try:
            picture = self.source.frames(position, [frame], [self.camera])[self.camera][0]
        except SampleError:
            return None
        return estimate(self.cfg, self.params, picture)


def open_maps(path: str | os.PathLike[str], source: EpisodeSource, settings: Settings) -> tuple[NetworkMaps, Settings]:
    """Loads a network. Returns its maps of `settings.camera`, and the settings with its name."""
    cfg, params = files.load(path)
    name = NAMES.get(cfg.width, f"width {cfg.width}")
    return (
        NetworkMaps(source, settings.camera, cfg, params),
        dataclasses.replace(settings, kind="disparity", estimator=name, input_size=depth_maps.NETWORK_SIZE),
    )


def estimate(cfg: DepthAnythingConfig, params: Params, picture: np.ndarray) -> np.ndarray:
    """Returns f32[H, W], relative inverse depth of u8[H, W, 3]; compiled once for each size of pictures."""
    pixels = depth_maps.network_input(picture)[None]
    return np.asarray(_run(cfg, params, pixels, picture.shape[:2])[0])


_run = jax.jit(depth_anything.estimate, static_argnums=(0, 3))
