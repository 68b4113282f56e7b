"""What the columns of one's own dataset mean, as JSON: the fields of `oxe.Row` (RLDS) or `oxe.Tag` (LeRobot)."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from molmoact2_jax import config
from molmoact2_jax.data import oxe


def read(path: pathlib.Path) -> oxe.Row | oxe.Tag:
    """Reads a row, which states its rate `fps`, or a tag, whose datasets know theirs.

    Raises:
      ValueError: no such file, or fields that do not exist or are missing; near ones are named.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no file, expected the fields of oxe.Row or oxe.Tag as JSON. Check the path.")
    values = json.loads(path.read_text("utf-8"))
    if "fps" not in values:
        return config.build(oxe.Tag, values, str(path))
    parts = {"cameras": oxe.Camera, "state": oxe.Field, "action": oxe.Field}
    built = {
        key: tuple(config.build(kind, item, f"{path}.{key}[{i}]") for i, item in enumerate(values.get(key, ())))
        for key, kind in parts.items()
    }
    return dataclasses.replace(config.build(oxe.Row, {**values, **dict.fromkeys(parts, ())}, str(path)), **built)
