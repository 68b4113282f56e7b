"""Demonstrations on disk: a file each while they are made, then LeRobot and RLDS datasets."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from molmoact2_jax.data import lerobot_write, oxe, pictures, rlds_write
from molmoact2_jax.envs.base import Spec
from molmoact2_jax.envs.experts import Demonstration

EXECUTED = "executed_action"  # not "action..."; other readers take every such column for a label


def save(path: pathlib.Path, shown: Demonstration) -> None:
    """Writes one episode; the file appears at once. Of a failed one only the facts are kept."""
    views = ("images", "depth")
    facts: dict[str, Any] = {f.name: getattr(shown, f.name) for f in dataclasses.fields(shown) if f.name not in views}
    if shown.success:
        facts |= {f"images/{camera}": view for camera, view in shown.images.items()}
        facts |= {} if shown.depth is None else {"depth": shown.depth}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".incomplete")
    with open(unfinished, "wb") as file:
        np.savez_compressed(file, **facts)
    os.replace(unfinished, path)


def load(path: pathlib.Path) -> Demonstration:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
        facts = {name: arrays[name] for name in arrays.files if not name.startswith("images/")}
        views = {name.removeprefix("images/"): arrays[name] for name in arrays.files if name.startswith("images/")}
    plain = {name: value.item() if value.ndim == 0 else value for name, value in facts.items()}
    return Demonstration(images=views, **plain)


def succeeded(path: pathlib.Path) -> bool:
    """Tells whether an episode succeeded, without reading its pictures."""
    with np.load(path) as arrays:
        return bool(arrays["success"])


def write_maps(directory: pathlib.Path, episodes: Iterable[Demonstration]) -> None:
    """Writes the depth of each episode, in order, as `data depth --maps` reads it; nothing where none was measured."""
    for number, shown in enumerate(episodes):
        if shown.depth is not None:
            directory.mkdir(parents=True, exist_ok=True)
            np.save(directory / f"episode_{number:06}.npy", shown.depth)


def write_lerobot(directory: pathlib.Path, spec: Spec, episodes: Iterable[Demonstration]) -> None:
    """Writes a LeRobot v3.0 dataset with exact pictures.

    Its column `action` is what the expert decided; `executed_action` is what was carried out, which differs from it in
    disturbed episodes alone; `seed` is the environment's.
    """
    if directory.exists():
        return  # an earlier call finished it, and died before its report
    shutil.rmtree(directory.with_name(f"{directory.name}.recording"), ignore_errors=True)
    writer = None
    for shown in episodes:
        if writer is None:
            features = _lerobot_features(spec, shown)
            writer = lerobot_write.Writer(directory, fps=round(spec.fps), features=features, robot_type=spec.setup)
        for frame in _frames(shown):
            writer.add({k: v for k, v in frame.items() if k != "task"}, task=frame["task"])
        writer.end_episode()
    assert writer is not None
    writer.finalize()


def _lerobot_features(spec: Spec, shown: Demonstration) -> dict[str, Any]:
    views = {
        f"observation.images.{camera}": lerobot_write.camera(*view.shape[1:3], dtype="image")
        for camera, view in shown.images.items()
    }
    return {
        "observation.state": lerobot_write.vector(spec.state_names),
        "action": lerobot_write.vector(spec.action_names),
        EXECUTED: lerobot_write.vector(spec.action_names),
        "seed": lerobot_write.vector(("seed",), "int64"),
        **views,
    }


def _frames(shown: Demonstration) -> Iterator[dict[str, Any]]:
    for t in range(len(shown.actions)):
        yield {
            "observation.state": shown.states[t],
            "action": shown.actions[t],
            EXECUTED: shown.executed[t],
            "seed": np.array([shown.seed]),
            "task": shown.instruction,
            **{f"observation.images.{camera}": view[t] for camera, view in shown.images.items()},
        }


def write_rlds(directory: pathlib.Path, spec: Spec, episodes: Iterable[Demonstration]) -> None:
    """Writes an RLDS dataset with the columns of `write_lerobot`; seed and style are metadata of the episode."""
    if (directory / "features.json").exists():
        return  # an earlier call finished it, and died before its report
    shutil.rmtree(directory, ignore_errors=True)
    with rlds_write.Writer(directory, spec.env, _rlds_features(spec), file_format="tfrecord") as writer:
        for shown in episodes:
            facts = dict(task=shown.task, seed=shown.seed, style=shown.style)
            writer.add(_rlds_steps(shown), {"episode_metadata": facts})


def _rlds_features(spec: Spec) -> Any:
    import tensorflow_datasets as tfds

    def vector(names: tuple[str, ...]) -> Any:
        return tfds.features.Tensor(shape=(len(names),), dtype=np.float32)

    def flag() -> Any:
        return tfds.features.Scalar(np.bool_)

    views = {name: tfds.features.Image(shape=(None, None, 3), encoding_format="png") for name in spec.cameras}
    steps = {
        "observation": {"state": vector(spec.state_names), **views},
        "action": vector(spec.action_names),
        EXECUTED: vector(spec.action_names),
        "language_instruction": tfds.features.Text(),
        "reward": tfds.features.Scalar(np.float32),
        "discount": tfds.features.Scalar(np.float32),
        "is_first": flag(),
        "is_last": flag(),
        "is_terminal": flag(),
    }
    metadata = {"task": tfds.features.Text(), "seed": tfds.features.Scalar(np.int64), "style": tfds.features.Text()}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), "episode_metadata": metadata})


def _rlds_steps(shown: Demonstration) -> Iterator[dict[str, Any]]:
    last = len(shown.actions) - 1
    for t in range(last + 1):
        views = {camera: pictures.encode_png(view[t]) for camera, view in shown.images.items()}
        yield {
            "observation": {"state": shown.states[t], **views},
            "action": shown.actions[t],
            EXECUTED: shown.executed[t],
            "language_instruction": shown.instruction,
            "reward": np.float32(t == last),
            "discount": np.float32(1),
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
        }


def tag_of(spec: Spec) -> oxe.Tag:
    """Returns how the LeRobot dataset of a simulator is read; without statistics a chunk lasts a second."""
    cameras = tuple(f"observation.images.{camera}" for camera in spec.cameras)
    horizon = max(1, round(spec.fps))
    return oxe.Tag(spec.env, horizon, spec.setup, spec.control, cameras=cameras, normalize_gripper=True)


def row_of(spec: Spec) -> oxe.Row:
    """Returns how the RLDS dataset of a simulator is read."""
    return oxe.Row(
        name=spec.env,
        tag=spec.env,
        fps=spec.fps,
        cameras=tuple(oxe.Camera(camera, f"steps/observation/{camera}") for camera in spec.cameras),
        language=("steps/language_instruction",),
        state=(oxe.Field("steps/observation/state", spec.state_names, ", ".join(spec.state_units)),),
        action=(oxe.Field("steps/action", spec.action_names, ", ".join(spec.action_units)),),
        gripper="as the units say",
    )


WRITERS = {"lerobot": write_lerobot, "rlds": write_rlds}
MEANINGS: dict[str, Callable[[Spec], Any]] = {"lerobot": tag_of, "rlds": row_of}
