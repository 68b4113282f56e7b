"""Writes a dataset beside this file with LeRobot, which the library and its tests do without.

    pip install lerobot==0.4.4 && python make.py v3.0        # and lerobot==0.3.3 for v2.1

Two episodes, a camera in AV1 and one of PNG, a task of each. `frames.npz` holds what LeRobot itself decodes.
"""

from __future__ import annotations

import inspect
import pathlib
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LENGTHS = (4, 3)
NAMES = ["a.pos", "b.pos", "gripper.pos"]


def picture(episode: int, t: int, camera: int) -> np.ndarray:
    pixels = np.full((48, 64, 3), 60 * episode + 20 * t + 90 * camera, np.uint8)
    pixels[8 : 16 + 8 * t, 8:40, episode] = 255
    return pixels


def frame(episode: int, t: int) -> dict:
    numbers = np.float32(10 * episode + t + np.arange(3) / 10)
    return {
        "observation.state": numbers,
        "action": numbers + 100,
        "observation.images.front": picture(episode, t, 0),
        "observation.images.wrist": picture(episode, t, 1),
    }


def write(root: pathlib.Path) -> None:
    vector = {"dtype": "float32", "shape": (3,), "names": NAMES}
    view = {"shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": vector,
        "action": vector,
        "observation.images.front": view | {"dtype": "video"},
        "observation.images.wrist": view | {"dtype": "image"},
    }
    made = LeRobotDataset.create("local/own", fps=10, features=features, root=root)
    task_is_argument = "task" in inspect.signature(made.add_frame).parameters
    for e, length in enumerate(LENGTHS):
        for t in range(length):
            task = f"öffne Schublade {e}"
            if task_is_argument:
                made.add_frame(frame(e, t), task=task)
            else:
                made.add_frame(frame(e, t) | {"task": task})
        made.save_episode()
    if hasattr(made, "finalize"):
        made.finalize()


def decoded(root: pathlib.Path) -> dict[str, np.ndarray]:
    views: dict[str, list[np.ndarray]] = {"front": [], "wrist": []}
    found = LeRobotDataset("local/own", root=root, video_backend="pyav")
    for item in (found[i] for i in range(len(found))):
        for name, pictures in views.items():
            pixels = item[f"observation.images.{name}"].permute(1, 2, 0).numpy()
            pictures.append(np.rint(255 * pixels).astype(np.uint8))
    return {name: np.stack(pictures) for name, pictures in views.items()}


if __name__ == "__main__":
    directory = pathlib.Path(__file__).parent / sys.argv[1]
    write(directory)
    np.savez_compressed(directory / "frames.npz", **decoded(directory))
