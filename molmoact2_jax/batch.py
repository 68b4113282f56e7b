"""The two records that cross module borders: what a robot sees, and a packed batch of training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Observation:
    """One moment of one robot.

    Attributes:
      images: pictures in the order of the tag's cameras; u8[H, W, 3], PIL, or float (`io.md` 3.1).
      task: instruction in words.
      state: f32[D], proprioception in the robot's own units (rad, m, ...), or None for a model without state.
      norm_tag: name of the robot's statistics in the checkpoint.
    """

    images: Sequence[Any]
    task: str
    state: np.ndarray | None
    norm_tag: str


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed training rows: B rows, T tokens, I crops, F image tokens, W window slots, C chunks, A steps, N channels.

    Attributes:
      tokens: i32[B, T], input ids; padding is the pad id.
      positions: i32[B, T], position inside the example, from 0; 0 on padding.
      segments: i32[B, T], 100 000 * (example in the row) + conversation, 10 000 for a prefix shared by
        conversations; -1 on padding. Token i may attend to j <= i iff segments[i] <= segments[j].
      targets: i32[B, T], the id that follows each input id.
      weights: f32[B, T], loss weight of each target, 0 where there is no loss.
      styles: i32[B, T], index into `STYLES` of each token's example; -1 on padding.
      crops: u8[B, I, H, W, 3], resized pictures; zeros where the row has fewer.
      crop_valid: bool[B, I].
      pooling: i32[B, F, W], patch indices (crop * patches + patch) of each image token's window, -1 empty;
        a row of -1 is padding. Image token f belongs to the f-th image-patch id of the row.
      actions: f32[B, C, A, N], normalised chunks, zero-padded.
      action_valid: bool[B, C, A], true for steps inside the tag's horizon.
      channel_valid: bool[B, C, N], true for channels the robot has.
      chunk_example: i32[B, C], the example in the row that a chunk belongs to, -1 for padding.
      row: i32[B], global index of the row in the stream; random keys fold it in.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    styles: np.ndarray
    crops: np.ndarray
    crop_valid: np.ndarray
    pooling: np.ndarray
    actions: np.ndarray
    action_valid: np.ndarray
    channel_valid: np.ndarray
    chunk_example: np.ndarray
    row: np.ndarray


SEGMENT = 100_000  # examples of a row are this far apart in `Batch.segments`
SHARED_PREFIX = 10_000  # conversation id of a prefix that all conversations of an example see
STYLES = ("robot_action", "robot_depth", "robot_depth_action", "vlm")
