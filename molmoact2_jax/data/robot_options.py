"""Choices that shape a robot's examples, and whether dataset, checkpoint and choices fit together."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from molmoact2_jax.data import augment, mixture, norm_stats, source
from molmoact2_jax.data.example import Encoding
from molmoact2_jax.text import actions as actions_lib
from molmoact2_jax.text import prompt

logger = logging.getLogger(__name__)

FORMATS = ("continuous", "discrete", "both")


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices that shape the examples of a robot.

    Attributes:
      action_format: what predicts actions: "continuous" the expert (the example is prompt and chunk, without an
        answer, as released), "discrete" the decoder (an answer, no chunk), or "both" (`training.md` 8).
      styles: rates of the output styles of `batch.STYLES`.
      episode_end: "repeat" trains on the repeats of the last action as released; "mask" does not.
      camera_order: "none" as the tag or dataset lists them, "episode" one permutation per episode, "all" per example.
      annotated_task: uses the episode's annotation where it has one; `sampled_annotation` that of a random episode of
        the same task.
      state: writes state tokens into the prompt.
      setup_tokens, control_tokens: marks these parts of the prompt.
      augment: "none", or a mode of `augment.MODES`: the released order, at camera size and before the resize. A run
        that augments here does not do so on the device (its own `augment` is "none").
      unwritable: what becomes of chunks with a level that the codec has no character for, whose stream is short and
        decodes to nothing: "keep" trains on it as released (and is counted), "skip" leaves the example out.
      horizon, channels: size of a padded chunk.
      max_images: cameras beyond this many are left out.
      seed: of all choices.
    """

    action_format: str = "both"
    styles: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"robot_action": 1.0})
    episode_end: str = "repeat"
    camera_order: str = "none"
    annotated_task: bool = False
    sampled_annotation: bool = False
    state: bool = True
    setup_tokens: bool = True
    control_tokens: bool = True
    augment: str = "none"
    unwritable: str = "keep"
    horizon: int = 30
    channels: int = 32
    max_images: int = 5
    seed: int = mixture.DATA_SEED

    def __post_init__(self):
        _check("action_format", self.action_format, FORMATS)
        _check("episode_end", self.episode_end, ("repeat", "mask"))
        _check("camera_order", self.camera_order, ("none", "episode", "all"))
        _check("augment", self.augment, ("none", *augment.MODES))
        _check("unwritable", self.unwritable, ("skip", "keep"))
        for style in self.styles:
            _check("styles", style, tuple(prompt.QUESTIONS))
        if not sum(self.styles.values()) > 0:
            raise ValueError(f"Options.styles: {dict(self.styles)}, expected at least one rate above 0.")

    @property
    def words(self) -> tuple[str, ...]:
        """Families of tokens that the examples hold; a continuous action has no answer in tokens."""
        answered = self.action_format != "continuous"
        styles = [style for style, rate in self.styles.items() if rate > 0 and answered]
        families = [name for name in ("action", "depth") if any(name in style for style in styles)]
        return (*families, *["state"] * self.state)


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"Options.{name}: {value!r}, expected one of {list(allowed)}.")


class Robot(NamedTuple):
    """What the checkpoint knows of a robot: its tag's name and entry, the way of normalising, the action codec."""

    name: str
    tag: norm_stats.Tag
    mode: str
    codec: actions_lib.ActionCodec | None = None


def check(dataset: source.EpisodeSource, robot: Robot, encoding: Encoding, options: Options) -> None:
    """Refuses what cannot be trained on.

    Raises:
      ValueError: widths or horizon that do not match, or parts of checkpoint or dataset that are missing; each in
        words.
    """
    _check_widths(dataset, robot, options)
    _check_parts(dataset.name, robot, encoding, options)
    if "depth" in options.words:
        _check_depth(dataset, options)
    if options.annotated_task:
        _count_annotations(dataset)


def _check_depth(dataset: source.EpisodeSource, options: Options) -> None:
    """Refuses a dataset without depth codes; single frames that lack theirs are damaged samples."""
    for index in np.flatnonzero(dataset.valid)[:1]:
        with contextlib.suppress(source.SampleError):
            if dataset.depth_codes(*dataset.locate(int(index)), dataset.cameras) is None:
                raise ValueError(
                    f"{dataset.name}: no depth codes, expected for styles {dict(options.styles)}. Make them (molmoact2 "
                    "data depth) and name the companion in the recipe (depth of data.robots)."
                )


def _count_annotations(dataset: source.EpisodeSource) -> None:
    lacking = 0
    for episode in range(dataset.num_episodes):
        with contextlib.suppress(source.SampleError):  # one that cannot be read is refused with its example
            lacking += dataset.annotation(episode) is None
    if lacking:
        given = f"{dataset.name}: {lacking} of {dataset.num_episodes} episodes"
        logger.warning("%s have no annotated instruction, their own is used", given)


def _check_widths(dataset: source.EpisodeSource, robot: Robot, options: Options) -> None:
    for name, stats, width in (
        ("state", robot.tag.state, len(dataset.state_names)),
        ("action", robot.tag.action, len(dataset.action_names)),
    ):
        if stats is not None and stats.width != width:
            raise ValueError(
                f"{dataset.name}: {width} {name} channels, expected {stats.width} from the statistics of {robot.name}. "
                "This dataset is of another robot: choose its tag, or compute its statistics (molmoact2 data stats)."
            )
    horizon, width = robot.tag.horizon or options.horizon, len(dataset.action_names)
    if horizon > options.horizon or width > options.channels:
        raise ValueError(
            f"{dataset.name}: chunks of {horizon} steps and {width} channels, expected at most {options.horizon} and "
            f"{options.channels}. Shorten the tag's horizon or widen the model."
        )
    if not 0.5 <= horizon / dataset.fps <= 2:
        logger.warning("%s: a chunk of %d steps at %g Hz is not about a second", dataset.name, horizon, dataset.fps)


def _check_parts(name: str, robot: Robot, encoding: Encoding, options: Options) -> None:
    ids = encoding.ids
    lacking = [family for family in options.words if getattr(ids, f"{family}_first") is None]
    if lacking:
        raise ValueError(f"{name}: the vocabulary has no {lacking} tokens, expected by {options}. Add them first.")
    if options.action_format != "continuous" and "action" in options.words and robot.codec is None:
        raise ValueError(f"{name}: no action codec, expected for action_format {options.action_format!r}. Load one.")
    if encoding.processor.crop_mode != "resize":
        raise ValueError(f"{name}: crop_mode {encoding.processor.crop_mode!r}, expected 'resize' for robot pictures.")
