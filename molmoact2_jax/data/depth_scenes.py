"""Procedural tabletop scenes with exact depth: floor, wall, boxes and spheres. For tests, examples and trials.

World axes are x right, y away from the camera, z up, in metres; the floor is z = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

FAR = 5.0  # metres; what is not hit lies here


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a pinhole camera sees.

    Attributes:
      camera: f32[3], its position; it looks at `target`.
      target: f32[3].
      field: full angle of view, rad.
      wall: y of the wall.
      spheres: f32[N, 4], centre and radius.
      boxes: f32[M, 6], low and high corner.
      colours: u8[2 + N + M, 3], of floor, wall, spheres, boxes.
    """

    camera: np.ndarray
    target: np.ndarray
    field: float
    wall: float
    spheres: np.ndarray
    boxes: np.ndarray
    colours: np.ndarray


def draw(rng: np.random.Generator, max_objects: int = 6) -> Scene:
    """Draws a scene with up to `max_objects` of each kind."""
    num_spheres, num_boxes = rng.integers(0, max_objects + 1, 2)
    place = rng.uniform([-0.7, 0.2, 0.0], [0.7, 1.6, 0.3], (num_spheres, 3))
    radius = rng.uniform(0.04, 0.22, (num_spheres, 1))
    low = rng.uniform([-0.8, 0.2, 0.0], [0.6, 1.6, 0.05], (num_boxes, 3))
    size = rng.uniform([0.05, 0.05, 0.05], [0.5, 0.5, 0.6], (num_boxes, 3))
    return Scene(
        camera=rng.uniform([-0.5, -0.7, 0.4], [0.5, -0.2, 1.1]),
        target=rng.uniform([-0.2, 0.7, 0.0], [0.2, 1.2, 0.3]),
        field=rng.uniform(0.8, 1.3),
        wall=rng.uniform(1.8, 3.5),
        spheres=np.concatenate([place, radius], axis=1),
        boxes=np.concatenate([low, low + size], axis=1),
        colours=rng.integers(30, 226, (2 + num_spheres + num_boxes, 3)).astype(np.uint8),
    )


def episode(rng: np.random.Generator, length: int, size: int = 320) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Renders `length` frames in which one object slides; the rest stands still to the bit. Yields as `render`."""
    scene = draw(rng)
    box = np.array([[-0.3, 0.5, 0.0, -0.1, 0.7, 0.3]])
    scene = dataclasses.replace(
        scene, boxes=np.concatenate([scene.boxes, box]), colours=np.concatenate([scene.colours, [[200, 60, 40]]])
    )
    velocity = rng.uniform([-0.02, -0.02, 0], [0.02, 0.02, 0.0])
    for _ in range(length):
        yield render(scene, size)
        boxes = scene.boxes.copy()
        boxes[-1] += np.tile(velocity, 2)
        scene = dataclasses.replace(scene, boxes=boxes)


def render(scene: Scene, size: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Casts one ray per pixel.

    Returns:
      u8[size, size, 3], colour darkened with distance; f32[size, size], distance along the viewing axis in metres.
    """
    rays, axis = _rays(scene, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = [-scene.camera[2] / rays[..., 2], (scene.wall - scene.camera[1]) / rays[..., 1]]
        hits += [_sphere(scene.camera, rays, sphere) for sphere in scene.spheres]
        hits += [_box(scene.camera, rays, box) for box in scene.boxes]
    distances = np.stack(hits, axis=-1)
    distances = np.where(distances > 1e-6, distances, np.inf)  # behind the camera, or NaN
    nearest = distances.argmin(axis=-1)
    depth = np.minimum(distances.min(axis=-1) * (rays @ axis), FAR)
    shade = np.clip(1.2 - depth[..., None] / FAR, 0.2, 1)
    return (scene.colours[nearest] * shade).astype(np.uint8), depth.astype(np.float32)


def _rays(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    forward = _unit(scene.target - scene.camera)
    right = _unit(np.cross(forward, [0, 0, 1]))
    down = np.cross(forward, right)
    across = np.tan(scene.field / 2) * ((np.arange(size) + 0.5) / size * 2 - 1)
    rays = forward + across[None, :, None] * right + across[:, None, None] * down
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True), forward


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _sphere(origin: np.ndarray, rays: np.ndarray, sphere: np.ndarray) -> np.ndarray:
    offset = origin - sphere[:3]
    b = rays @ offset
    root = b**2 - (offset @ offset - sphere[3] ** 2)
    return np.where(root >= 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)


def _box(origin: np.ndarray, rays: np.ndarray, box: np.ndarray) -> np.ndarray:
    first, second = (box[:3] - origin) / rays, (box[3:] - origin) / rays
    enter = np.minimum(first, second).max(axis=-1)
    leave = np.maximum(first, second).min(axis=-1)
    return np.where(enter <= leave, enter, np.inf)
