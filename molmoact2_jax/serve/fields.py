"""What a client sent, under whichever of the known names, as one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.serve import wire_json

# pictures of clients that people have, in the order of the cameras they belong to
PRESETS: dict[str, tuple[str, ...]] = {
    "yam": ("top_cam", "left_cam", "right_cam"),
    "droid": ("external_cam", "wrist_cam"),
    "libero": ("image", "wrist_image"),
    "pair": ("image", "image1"),
    "single": ("image",),
    "openpi libero": ("observation/image", "observation/wrist_image"),
    "openpi droid": ("observation/exterior_image_1_left", "observation/wrist_image_left"),
    "roboarena": ("observation/exterior_image_0_left", "observation/wrist_image_left"),
    "roboarena, two": (
        "observation/exterior_image_0_left", "observation/exterior_image_1_left", "observation/wrist_image_left",
    ),
}  # fmt: skip
STATES = ("state", "states", "observation/state")
STATE_PARTS = ("observation/joint_position", "observation/gripper_position")
TASKS = ("instruction", "task", "prompt", "question")
TAGS = ("norm_tag", "tag")
_OTHER = (
    "images", "n_action_steps", "num_steps", "seed", "session_id", "single_action", "action_chunk", "n_obs_steps",
    "endpoint", "timestamp", "enable_cuda_graph", "normalization_tag", "observation/cartesian_position",
)  # fmt: skip
_TRUE = {"1", "true", "yes", "on"}


class FieldError(ValueError):
    """A field of a request that is missing or of the wrong kind."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One request for actions.

    Attributes:
      images: pictures in the order of the cameras, as arrays.
      task: instruction in words.
      state: array of numbers in the robot's units, or None.
      norm_tag: the robot that the client means; None takes the server's.
      n_action_steps, num_steps, seed: None takes the server's.
      session: name of the episode that it belongs to.
      style: "stateless" (a session of its own), "chunk" (the session's depth cache goes on) or "single" (one action of
        the session's queue).
      ignored: fields that no one reads, such as misspelled ones.
    """

    images: tuple[np.ndarray, ...]
    task: str
    state: np.ndarray | None
    norm_tag: str | None = None
    n_action_steps: int | None = None
    num_steps: int | None = None
    seed: int | None = None
    session: str = "default"
    style: str = "stateless"
    ignored: tuple[str, ...] = ()


def request(body: Any, cameras: Sequence[str]) -> Request:
    """Reads a decoded message.

    Args:
      body: a dict of fields, or one whose `encoded` is JSON text of such a dict.
      cameras: names of the server's cameras in their order.

    Raises:
      FieldError: names the field; WireError: a picture that cannot be read.
    """
    if isinstance(body, dict) and isinstance(body.get("encoded"), str):
        body = wire_json.loads(body["encoded"], "encoded")
    if not isinstance(body, dict):
        raise FieldError(f"body: {type(body).__name__}, expected fields by name: pictures, state, instruction.")
    keys, pictures = _pictures(body, cameras)
    known = {*keys, *STATES, *STATE_PARTS, *TASKS, *TAGS, *_OTHER, "encoded"}
    return Request(
        images=tuple(_picture(value, f"images[{i}] ({key})") for i, (key, value) in enumerate(zip(keys, pictures))),
        task=_task(body),
        state=_state(body),
        norm_tag=_first(body, TAGS, str),
        n_action_steps=_whole(body, "n_action_steps"),
        num_steps=_whole(body, "num_steps"),
        seed=_whole(body, "seed"),
        session=session_of(body),
        style=_style(body),
        ignored=tuple(sorted(set(body) - known)),
    )


def session_of(body: Mapping[str, Any]) -> str:
    """Returns the name of the session, "default" where none is given.

    Raises:
      FieldError: it is no short text.
    """
    name = body.get("session_id")
    name = "default" if name is None else str(name) if isinstance(name, int) else name
    if not isinstance(name, str) or len(name) > 200:
        raise FieldError("session_id: expected text of at most 200 characters.")
    return name


def short(camera: str) -> str:
    """Returns the last word of a camera's key: "observation.images.top" is "top"."""
    return camera.rpartition(".")[2]


def _pictures(body: Mapping[str, Any], cameras: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Returns the names and values of the pictures in the order of the cameras."""
    given = body.get("images")
    if isinstance(given, dict):
        return _by_camera(given, cameras)
    if given is not None:
        if not isinstance(given, list | np.ndarray):
            raise FieldError(f"images: {type(given).__name__}, expected a list of pictures, or a dict by camera.")
        return [f"{i}" for i in range(len(given))], list(given)
    for spelled in (_same, short, _cam, _observation):
        keys = [spelled(camera) for camera in cameras]
        if all(key in body for key in keys):
            return keys, [body[key] for key in keys]
    found = [keys for keys in PRESETS.values() if all(key in body for key in keys)]
    if not found:
        raise FieldError(
            f"images: missing, expected {len(cameras)} ({', '.join(map(short, cameras))}). Send a list `images` in "
            "this order, or one field per camera."
        )
    longest = max(found, key=len)
    return list(longest), [body[key] for key in longest]


def _by_camera(given: Mapping[str, Any], cameras: Sequence[str]) -> tuple[list[str], list[Any]]:
    values = {short(str(key)): value for key, value in given.items()}
    wanted = [short(camera) for camera in cameras]
    if values.keys() != set(wanted):
        raise FieldError(f"images: {sorted(values)}, expected {wanted}. Send one picture per camera.")
    return wanted, [values[name] for name in wanted]


def _same(camera: str) -> str:
    return camera


def _cam(camera: str) -> str:
    return f"{short(camera)}_cam"


def _observation(camera: str) -> str:
    return f"observation/{short(camera)}"


def _picture(value: Any, where: str) -> np.ndarray:
    if isinstance(value, str):
        return wire_json.picture(value, where)
    array = _numbers(value, where)
    if array.ndim not in (2, 3, 4) or array.size > 4 * wire_json.MAX_PIXELS:
        raise FieldError(f"{where}: shape {list(array.shape)}, expected [height, width, 3] of uint8, RGB.")
    return array


def _numbers(value: Any, where: str) -> np.ndarray:
    """Returns an array of numbers of what may be nested lists."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise FieldError(f"{where}: lists of different lengths, expected an array.") from error
    if array.dtype.kind not in "biuf":
        raise FieldError(f"{where}: {type(value).__name__}, expected numbers.")
    return array


def _task(body: Mapping[str, Any]) -> str:
    task = _first(body, TASKS, str)
    if task is None:
        raise FieldError(f"instruction: missing, expected words under one of {', '.join(TASKS)}.")
    return task


def _state(body: Mapping[str, Any]) -> np.ndarray | None:
    for key in STATES:
        if body.get(key) is not None:
            return _numbers(body[key], "state")
    parts = [_numbers(body[key], key) for key in STATE_PARTS if body.get(key) is not None]
    return np.concatenate([np.atleast_1d(part) for part in parts]) if parts else None


def _first(body: Mapping[str, Any], keys: Sequence[str], kind: type) -> Any:
    for key in keys:
        if (value := body.get(key)) is not None:
            if not isinstance(value, kind):
                raise FieldError(f"{key}: {type(value).__name__}, expected text.")
            return value
    return None


def _whole(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is None or (isinstance(value, int | np.integer) and not isinstance(value, bool)):
        return None if value is None else int(value)
    raise FieldError(f"{key}: {str(value)[:40]!r}, expected a whole number.")


def _style(body: Mapping[str, Any]) -> str:
    if (steps := _whole(body, "n_obs_steps")) not in (None, 1):
        raise FieldError(f"n_obs_steps: {steps}, expected 1: the model sees one moment.")
    if _true(body.get("single_action")):
        return "single"
    return "chunk" if _true(body.get("action_chunk")) else "stateless"


def _true(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _TRUE
    return isinstance(value, bool | int | np.generic) and bool(value)


def plain(body: Any) -> bool:
    """Says whether a message holds no arrays, so that its sender expects lists back."""
    if isinstance(body, dict):
        return all(map(plain, body.values()))
    if isinstance(body, list):
        return all(map(plain, body))
    return not isinstance(body, np.ndarray | np.generic)
