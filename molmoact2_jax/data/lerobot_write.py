"""Records LeRobot v3.0 datasets: episode after episode, resumable after a crash, finished in one rename."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import lerobot_files, pictures, video


def vector(names: tuple[str, ...], dtype: str = "float32") -> dict[str, Any]:
    """Returns the description of a numeric feature with one name per channel."""
    return {"dtype": dtype, "shape": [len(names)], "names": list(names)}


def camera(height: int, width: int, *, dtype: str = "video") -> dict[str, Any]:
    """Returns the description of a camera; dtype "video" (mp4) or "image" (PNG in the table, exact)."""
    return {"dtype": dtype, "shape": [height, width, 3], "names": ["height", "width", "channels"]}


CODECS = ("libsvtav1", "libx264")


class Writer:
    """Appends episodes. What was recorded survives a crash: a writer of the same directory goes on after it.

    writer = Writer(directory, fps=10, features={"observation.state": vector(...), "action": vector(...), ...})
    writer.add({"observation.state": ..., "action": ..., "observation.images.top": u8[H, W, 3]}, task="...")
    writer.end_episode()
    writer.finalize()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        fps: int,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str = "unknown",
        codec: str = "libsvtav1",
    ):
        """Starts a dataset, or resumes one that was not finalised.

        Args:
          directory: of the dataset; until `finalize`, episodes lie beside it in `DIRECTORY.recording`.
          fps: frames per second.
          features: {name: `vector` or `camera`}.
          robot_type: for `meta/info.json`.
          codec: "libsvtav1" or "libx264".

        Raises:
          ValueError: the directory exists, the recording there has other settings, or they cannot be encoded.
        """
        self.directory = pathlib.Path(directory)
        if self.directory.exists():
            raise ValueError(f"{self.directory}: exists already, expected a new directory.")
        self.recording = self.directory.with_name(f"{self.directory.name}.recording")
        self.settings: dict[str, Any] = {
            "fps": fps,
            "features": dict(features),
            "robot_type": robot_type,
            "codec": codec,
        }
        _check(self.directory, self.settings)
        self._check_recording()
        self.num_episodes = len(list(self.recording.glob("episode-*")))
        self._frames: list[dict[str, Any]] = []
        self._tasks: list[str] = []
        self._encoders: dict[str, video.Encoder] = {}

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Appends a frame to the episode; videos are encoded as the frames come.

        Args:
          frame: a value for every feature; vectors [D], pictures u8[H, W, 3].
          task: instruction.

        Raises:
          ValueError: a feature is missing, unknown, or has another shape, or the task is no text.
        """
        if not isinstance(task, str):
            raise ValueError(f"{self.directory}: task is {task!r}, expected an instruction in words.")
        features = self.settings["features"]
        if set(frame) != set(features):
            raise ValueError(f"{self.directory}: frame has {sorted(frame)}, expected {sorted(features)}.")
        numbers = {name: self._value(name, np.asarray(value)) for name, value in frame.items()}
        self._frames.append({name: value for name, value in numbers.items() if value is not None})
        self._tasks.append(task)

    def end_episode(self) -> None:
        """Keeps the episode."""
        if not self._frames:
            raise ValueError(f"{self.directory}: the episode has no frames. Use `discard_episode`.")
        for encoder in self._encoders.values():
            encoder.close()
        self._unfinished.mkdir(exist_ok=True)
        length = len(self._frames)
        columns = {name: [frame[name] for frame in self._frames] for name in self._frames[0]}
        columns["timestamp"] = list(np.arange(length, dtype=np.float32) / np.float32(self.settings["fps"]))
        features = self.settings["features"] | {"timestamp": {"dtype": "float32", "shape": [1]}}
        arrays = {name: lerobot_files.column(values, features[name]) for name, values in columns.items()}
        pq.write_table(pa.table(arrays), self._unfinished / "data.parquet")
        (self._unfinished / "episode.json").write_text(json.dumps({"length": length, "tasks": self._tasks}))
        self._unfinished.rename(self.recording / f"episode-{self.num_episodes:06}")
        self.num_episodes += 1
        self._frames, self._tasks, self._encoders = [], [], {}

    def discard_episode(self) -> None:
        """Forgets the frames since the last episode."""
        for encoder in self._encoders.values():
            encoder.close()
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._frames, self._tasks, self._encoders = [], [], {}

    def finalize(self) -> pathlib.Path:
        """Joins the episodes into the dataset, which appears at once. Returns its directory.

        Raises:
          ValueError: no episodes, or one that has not ended.
        """
        if self._frames or not self.num_episodes:
            given = f"{self.num_episodes} episodes and {len(self._frames)} frames of one that has not ended"
            raise ValueError(f"{self.directory}: {given}, expected whole episodes. End or discard the last one.")
        unfinished = self.directory.with_name(f"{self.directory.name}.incomplete")
        shutil.rmtree(unfinished, ignore_errors=True)
        lerobot_files.assemble(sorted(self.recording.glob("episode-*")), unfinished, self.settings)
        unfinished.rename(self.directory)
        shutil.rmtree(self.recording)
        return self.directory

    @property
    def _unfinished(self) -> pathlib.Path:
        return self.recording / "unfinished"

    def _check_recording(self) -> None:
        self.recording.mkdir(parents=True, exist_ok=True)
        path, settings = self.recording / "settings.json", json.loads(json.dumps(self.settings))
        if path.exists() and json.loads(path.read_text()) != settings:
            raise ValueError(f"{self.recording}: was begun with other settings. Finish or remove it first.")
        path.write_text(json.dumps(settings))
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def _value(self, name: str, value: np.ndarray) -> np.ndarray | dict | None:
        """Checks one value; gives a picture to its encoder and returns what belongs into the table."""
        feature = self.settings["features"][name]
        if list(value.shape) != list(feature["shape"]) and not (value.ndim == 0 and feature["shape"] == [1]):
            raise ValueError(f"{self.directory}: {name} is {list(value.shape)}, expected {feature['shape']}.")
        if feature["dtype"] not in ("image", "video"):
            return value.astype(feature["dtype"])
        if value.dtype != np.uint8:
            raise ValueError(f"{self.directory}: {name} is {value.dtype}, expected uint8 pixels.")
        if feature["dtype"] == "image":
            return {"bytes": pictures.encode_png(value), "path": None}
        if name not in self._encoders:
            self._unfinished.mkdir(exist_ok=True)
            size, path = (value.shape[0], value.shape[1]), self._unfinished / f"{name}.mp4"
            self._encoders[name] = video.Encoder(path, self.settings["fps"], size, self.settings["codec"])
        self._encoders[name].add(value)
        return None


def _check(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Refuses what the encoders would refuse at the first picture, or the readers later."""
    fps, codec = settings["fps"], settings["codec"]
    if isinstance(fps, bool) or not isinstance(fps, int) or fps < 1:
        raise ValueError(f"{directory}: fps {fps!r}, expected a whole number of frames per second.")
    if codec not in CODECS:
        raise ValueError(f"{directory}: codec {codec!r}, expected one of {CODECS}.")
    for name, feature in settings["features"].items():
        if feature["dtype"] == "video" and codec == "libx264" and any(size % 2 for size in feature["shape"][:2]):
            size = f"{name} is {feature['shape'][0]} x {feature['shape'][1]}"
            raise ValueError(f"{directory}: {size}, expected even sizes for H264. Crop a line, or use {CODECS[0]!r}.")
