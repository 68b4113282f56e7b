"""The same small dataset in every format, and how each is opened."""

from __future__ import annotations

import dataclasses
import pathlib

import fixtures
import numpy as np

from molmoact2_jax.data import lerobot, oxe, rlds, table

TAG = oxe.Tag("own", 10, "an arm", "absolute joint pose")
RLDS, ARCHIVE, V3, PICTURES, V21 = "rlds", "array_record", "lerobot", "lerobot_pictures", "lerobot_v21"
KINDS = (RLDS, ARCHIVE, V3, PICTURES, V21)
LENGTHS = (7, 5, 9, 6)


def smooth(lengths=LENGTHS):
    """Episodes whose joints move as a robot's do."""
    made = []
    for e, episode in enumerate(fixtures.episodes(lengths)):
        time = np.arange(len(episode))[:, None] / 10
        state = (np.sin(time + np.arange(8) + e)).astype(np.float32)
        made.append(dataclasses.replace(episode, state=state, action=state + np.float32(0.01)))
    return made


def write(kind, directory, made):
    if kind in (RLDS, ARCHIVE):
        return fixtures.rlds(directory, made, file_format="tfrecord" if kind == RLDS else kind, per_shard=1)
    if kind == V21:
        return fixtures.lerobot_v21(directory, made)
    return fixtures.lerobot(directory, made, dtype="image" if kind == PICTURES else "video")


def open_source(kind, directory, quarantined=None):
    options = table.Options(name="own", quarantine=quarantined)
    if kind in (RLDS, ARCHIVE):
        return rlds.RLDSSource(directory, fixtures.ROW, options)
    return lerobot.LeRobotSource(directory, TAG, options)


def sound_copies(root) -> dict[str, pathlib.Path]:
    """Writes a sound dataset in each format."""
    return {kind: write(kind, root / kind, smooth()) for kind in KINDS}
