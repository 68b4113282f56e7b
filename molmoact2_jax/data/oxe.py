"""What each public robot dataset means: one row per dataset, and one per embodiment tag of the released checkpoints.

Only this file knows quirks of datasets. A dataset of one's own is `dataclasses.replace(TEMPLATE, ...)`.
Sources: `io.md` 4.7 and 8.1, `training.md` 4.1 for tags; the datasets' own feature descriptions for fields. Where the
conversion behind a released tag is not published (Bridge, RT-1, BC-Z), rows follow Open X-Embodiment practice:
end-effector deltas, gripper 1 = open. `data stats` compares a dataset with a checkpoint's statistics; do that first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tag:
    """An embodiment tag: what the released statistics, prompts and chunks assume.

    Attributes:
      name: `norm_tag`.
      horizon: steps of a chunk, about one second.
      setup, control: strings of the prompt.
      cameras: LeRobot keys in order; empty means the dataset's own order.
      state_keys: LeRobot columns concatenated into the state.
      action_key: LeRobot column of the action.
      normalize_gripper: whether gripper channels are normalised like the others.
      aliases: how joint names are made equal across datasets: "", "so100" or "yam" (`training.md` 4.1).
    """

    name: str
    horizon: int
    setup: str
    control: str
    cameras: tuple[str, ...] = ()
    state_keys: tuple[str, ...] = ("observation.state",)
    action_key: str = "action"
    normalize_gripper: bool = False
    aliases: str = ""


JOINTS, DELTA = "absolute joint pose", "delta end-effector pose"


def _keys(*cameras: str) -> tuple[str, ...]:
    return tuple(f"observation.images.{camera}" for camera in cameras)


TAGS = {
    tag.name: tag
    for tag in (
        Tag("yam_dual_molmoact2", 30, "bimanual yam robotic arms in molmoact2", JOINTS,
            cameras=_keys("top", "left", "right"), aliases="yam"),
        Tag("so100_so101_molmoact2", 30, "single so100/so101 robotic arm in molmoact2", JOINTS,
            normalize_gripper=True, aliases="so100"),
        Tag("franka_droid", 15, "single franka robotic arm in droid", JOINTS,
            cameras=_keys("exterior_1_left", "exterior_2_left", "wrist_left")),
        Tag("franka_molmoact", 10, "single franka robotic arm in molmoact2", DELTA,
            cameras=_keys("primary", "secondary"), action_key="action.del_ee_action"),
        Tag("google_robot_bc_z", 10, "google robot in bc_z", DELTA, cameras=_keys("image")),
        Tag("google_robot_fractal", 3, "google robot in rt_1", DELTA, cameras=_keys("image")),
        Tag("widowx_bridge", 5, "single widowx robotic arm in bridge", DELTA,
            cameras=_keys("image_0", "image_1", "image_2", "image_3")),
        Tag("libero", 10, "single franka robotic arm in libero", DELTA, cameras=_keys("image", "wrist_image")),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
    """Some channels of a state or an action: columns `start` to `stop` of a feature, perhaps converted.

    `convert` names a function of `CONVERSIONS`; `unit` is that of the result.
    """

    key: str
    names: tuple[str, ...]
    unit: str
    start: int = 0
    convert: str = ""

    def read(self, values: np.ndarray) -> np.ndarray:
        """Returns f32[L, C] from one episode of the feature, [L] or [L, ...]."""
        flat = np.asarray(values, np.float32).reshape(len(values), int(np.prod(np.shape(values)[1:])))
        part = flat[:, self.start : self.start + len(self.names)]
        if part.shape[1] != len(self.names):
            wanted = self.start + len(self.names)
            raise ValueError(
                f"{self.key}: {flat.shape[1]} channels, expected {wanted} or more. Correct the field's names."
            )
        return CONVERSIONS[self.convert](part) if len(part) else part


@dataclasses.dataclass(frozen=True)
class Camera:
    """A view. `present` names an episode-level flag that is false where the stored picture is a dummy, "" for none."""

    name: str
    key: str
    present: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One RLDS dataset.

    Attributes:
      name: the dataset's usual name.
      tag: key of `TAGS`, or the name of one's own statistics.
      fps: control rate, 1/s; RLDS stores no time.
      cameras: named as the tag's are (`observation.images.NAME`), so that the released statistics find them.
      language, state, action: features, by full name; the first non-blank language field is the instruction.
      gripper: what the numbers of the gripper channels mean, in words.
      drop_first, drop_last: steps at the ends of an episode that are no example.
    """

    name: str
    tag: str
    fps: float
    cameras: tuple[Camera, ...]
    language: tuple[str, ...]
    state: tuple[Field, ...]
    action: tuple[Field, ...]
    gripper: str
    drop_first: int = 0
    drop_last: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """Numeric features that state and action read."""
        return tuple(dict.fromkeys(field.key for field in (*self.state, *self.action)))

    @property
    def features(self) -> tuple[str, ...]:
        """All features that the row names."""
        present = (camera.present for camera in self.cameras if camera.present)
        return (*self.keys, *self.language, *(camera.key for camera in self.cameras), *present)


def opened(closed: np.ndarray) -> np.ndarray:
    """Turns 1 = closed into 1 = open."""
    return 1 - closed


def binary(gripper: np.ndarray) -> np.ndarray:
    """Makes a gripper channel 0 or 1: values between 0.05 and 0.95 take the state that is reached after them.

    At the end of an episode, values in between become the nearer of the two.
    """
    out, reached = np.empty_like(gripper), np.round(np.clip(gripper[-1], 0, 1))
    for i in reversed(range(len(gripper))):
        reached = np.where(gripper[i] > 0.95, 1, np.where(gripper[i] < 0.05, 0, reached))
        out[i] = reached
    return out


def opened_from_motion(closing: np.ndarray) -> np.ndarray:
    """Turns commands (1 closes, -1 opens, 0 keeps) into 1 = open, 0 = closed; an untouched gripper is open."""
    command = np.where(closing < -0.1, 1.0, np.where(closing > 0.1, 0.0, np.nan))
    first = np.argmax(np.isfinite(command), axis=0)
    moved = np.isfinite(command).any(axis=0)
    start = np.where(moved, 1 - np.take_along_axis(command, first[None], axis=0)[0], 1.0)
    out, held = np.empty_like(closing), start
    for i in range(len(closing)):
        held = np.where(np.isfinite(command[i]), command[i], held)
        out[i] = held
    return out


def motion(pose: np.ndarray) -> np.ndarray:
    """Returns pose[t + 1] - pose[t] of (3 positions, 3 angles), angles the short way round; 0 at the last step."""
    step = np.diff(pose, axis=0, append=pose[-1:])
    step[:, 3:] = (step[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return step


CONVERSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": np.asarray,
    "opened": opened,
    "binary": binary,
    "opened_from_motion": opened_from_motion,
    "motion": motion,
}

POSITION, EULER, GRIPPER = ("x", "y", "z"), ("roll", "pitch", "yaw"), ("gripper",)
ROTATION, QUATERNION = ("rx", "ry", "rz"), ("qx", "qy", "qz", "qw")
SEVEN_JOINTS = tuple(f"joint_{i}" for i in range(7))
_OBSERVATION, _ACTION = "steps/observation", "steps/action"


def _cameras(*names: str, flag: str = "") -> tuple[Camera, ...]:
    return tuple(Camera(name, f"{_OBSERVATION}/{name}", flag and f"{flag}{name}") for name in names)


TEMPLATE = Row(
    name="own",
    tag="own",
    fps=10.0,
    cameras=_cameras("image"),
    language=("steps/language_instruction",),
    state=(Field(f"{_OBSERVATION}/state", (*SEVEN_JOINTS, "gripper"), "rad, gripper 0..1"),),
    action=(Field(_ACTION, (*SEVEN_JOINTS, "gripper"), "rad, gripper 0..1"),),
    gripper="1 = open",
)

ROWS = {
    row.name: row
    for row in (
        # The original release from the project's site. Its first action is zero; actions are re-derived from poses,
        # as the commanded ones do not move the arm as far as they say.
        Row("bridge", "widowx_bridge", 5.0,
            cameras=_cameras("image_0", "image_1", "image_2", "image_3", flag="episode_metadata/has_"),
            language=("steps/language_instruction",),
            state=(Field(f"{_OBSERVATION}/state", (*POSITION, *EULER, "gripper"), "m, rad, gripper 0..1"),),
            action=(Field(f"{_OBSERVATION}/state", (*POSITION, *EULER), "m, rad", convert="motion"),
                    Field(_ACTION, GRIPPER, "1", start=6, convert="binary")),
            gripper="state 0..1, action 0 or 1; 1 = open", drop_first=1, drop_last=1),
        Row("fractal", "google_robot_fractal", 3.0,
            cameras=_cameras("image"),
            language=(f"{_OBSERVATION}/natural_language_instruction",),
            state=(Field(f"{_OBSERVATION}/base_pose_tool_reached", (*POSITION, *QUATERNION), "m, unit quaternion"),
                   Field(f"{_OBSERVATION}/gripper_closed", GRIPPER, "1")),
            action=(Field(f"{_ACTION}/world_vector", POSITION, "m"),
                    Field(f"{_ACTION}/rotation_delta", EULER, "rad"),
                    Field(f"{_ACTION}/gripper_closedness_action", GRIPPER, "1", convert="opened_from_motion")),
            gripper="state 1 = closed, action 1 = open"),
        # Stored actions are residuals to the next ten poses; the first is the next step.
        Row("bc_z", "google_robot_bc_z", 10.0,
            cameras=_cameras("image"),
            language=(f"{_OBSERVATION}/natural_language_instruction",),
            state=(Field(f"{_OBSERVATION}/present/xyz", POSITION, "m"),
                   Field(f"{_OBSERVATION}/present/axis_angle", ROTATION, "rad"),
                   Field(f"{_OBSERVATION}/present/sensed_close", GRIPPER, "1")),
            action=(Field(f"{_ACTION}/future/xyz_residual", POSITION, "m"),
                    Field(f"{_ACTION}/future/axis_angle_residual", ROTATION, "rad"),
                    Field(f"{_ACTION}/future/target_close", GRIPPER, "1", convert="opened")),
            gripper="state 1 = closed, action 1 = open"),
        Row("droid", "franka_droid", 15.0,
            cameras=tuple(Camera(view.replace("_image", ""), f"{_OBSERVATION}/{view}") for view in
                          ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")),
            language=("steps/language_instruction", "steps/language_instruction_2", "steps/language_instruction_3"),
            state=(Field(f"{_OBSERVATION}/joint_position", SEVEN_JOINTS, "rad"),
                   Field(f"{_OBSERVATION}/gripper_position", GRIPPER, "1")),
            action=(Field("steps/action_dict/joint_position", SEVEN_JOINTS, "rad"),
                    Field("steps/action_dict/gripper_position", GRIPPER, "1")),
            gripper="0 = open, 1 = closed"),
        # Released as LeRobot files (`TAGS["franka_molmoact"]`); this is their public conversion to RLDS.
        Row("molmoact", "franka_molmoact", 10.0,
            cameras=(Camera("primary", f"{_OBSERVATION}/first_view_image"),
                     Camera("secondary", f"{_OBSERVATION}/second_view_image")),
            language=("steps/language_instruction",),
            state=(Field(f"{_OBSERVATION}/state", (*POSITION, *ROTATION, "gripper"), "m, rad, gripper as recorded"),),
            action=(Field(_ACTION, (*POSITION, *ROTATION, "gripper"), "m, rad, gripper as recorded"),),
            gripper="as recorded: 0 = open, 1 = closed"),
        # The simulator steps at 20 Hz; the released dataset declares 10 and its chunk of 10 steps goes with that.
        Row("libero", "libero", 10.0,
            cameras=_cameras("image", "wrist_image"),
            language=("steps/language_instruction",),
            state=(Field(f"{_OBSERVATION}/state", (*POSITION, *ROTATION, "finger_0", "finger_1"), "m, rad, m"),),
            action=(Field(_ACTION, (*POSITION, *ROTATION, "gripper"), "controller units -1..1"),),
            gripper="state: finger positions, action: -1 = open, 1 = closed"),
        TEMPLATE,
    )
}  # fmt: skip
