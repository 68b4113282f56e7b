"""Observations to rows of model input: every check of what a robot sent, prompt, crops. Host side, NumPy only."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.config import ModelConfig, ProcessorConfig
from molmoact2_jax.data import clips, images, norm_stats, normalize
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.text import actions, prompt
from molmoact2_jax.text.tokenizer import Tokenizer

MAX_IMAGES = 5  # pictures per example that training ever showed


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt, not yet padded: tokens i32[N], crops u8[I, S, S, 3], pooling i32[F, W]."""

    tokens: np.ndarray
    crops: np.ndarray
    pooling: np.ndarray


@dataclasses.dataclass(frozen=True)
class Host:
    """Everything of a checkpoint that runs before and after the compiled program."""

    cfg: ModelConfig
    processor: ProcessorConfig
    tokenizer: Tokenizer
    stats: norm_stats.NormStats | None
    codec: actions.ActionCodec | None

    @classmethod
    def load(cls, directory: pathlib.Path, cfg: ModelConfig) -> Host:
        """Reads the side files of a checkpoint; statistics and codec may be absent."""
        stats, codec = directory / cfg.norm_stats_filename, directory / "action_tokenizer"
        return cls(
            cfg=cfg,
            processor=config_json.load_processor(directory, cfg.vit),
            tokenizer=Tokenizer.load(directory),
            stats=norm_stats.load(stats) if stats.is_file() else None,
            codec=actions.ActionCodec.load(codec) if codec.is_dir() else None,
        )

    @property
    def robots(self) -> norm_stats.NormStats:
        """Statistics of all robots.

        Raises:
          ValueError: the checkpoint has none.
        """
        if self.stats is None:
            file = self.cfg.norm_stats_filename
            raise ValueError(f"norm_tag: the checkpoint has no {file}, expected beside config.json. Copy it there.")
        return self.stats

    def tag(self, name: str) -> norm_stats.Tag:
        """Looks up a robot, and refuses one that the model is too narrow or too short for."""
        tag = self.robots.tag(name)
        if tag.action is None:
            raise ValueError(f"norm_tag: {name!r} has no action_stats, expected the width and scale of its actions.")
        if tag.action.width > self.cfg.action_dim:
            raise ValueError(
                f"norm_tag: {name!r} has {tag.action.width} action channels, expected at most {self.cfg.action_dim}."
            )
        if (tag.horizon or 0) > self.cfg.max_horizon:
            raise ValueError(f"norm_tag: {name!r} has horizon {tag.horizon}, expected at most {self.cfg.max_horizon}.")
        return tag

    def horizon(self, tag: norm_stats.Tag) -> int:
        """Returns the steps of a chunk of this robot."""
        return tag.horizon or self.cfg.max_horizon

    def channels(self, tag: norm_stats.Tag) -> int:
        """Returns the action channels of this robot."""
        assert tag.action is not None  # `tag` refuses such a robot
        return tag.action.width

    def row(self, observation: Observation, style: str, pictures: Sequence[np.ndarray]) -> Row:
        """Writes the prompt of an observation whose pictures are already `coerce`d."""
        cfg, tag = self.cfg, self.tag(observation.norm_tag)
        bins = None
        if tag.state is not None:
            state = check_state(observation.state, tag.state)
            model = normalize.normalize(normalize.to_model_joints(state, tag), tag.state, self.robots.mode)
            bins = normalize.state_bins(model, cfg.tokens.num_states)
        question = prompt.robot_question(
            prompt.normalize_task(observation.task), tag.setup, tag.control, bins, style,
            setup_tokens=cfg.setup_tokens, control_tokens=cfg.control_tokens,
        )  # fmt: skip
        return self.encode(prompt.robot_prompt(question, style, len(pictures)), pictures)

    def question(
        self, messages: Sequence[prompt.Message], given: Sequence[Any], video: tuple[np.ndarray, float] | None
    ) -> Row:
        """Writes the prompt of a conversation about pictures, or about a video (frames u8[T, H, W, 3], their rate)."""
        if video is not None and len(given):
            raise ValueError("video: given together with images, expected one of them.")
        if video is not None:
            return self._video(messages, *video)
        pictures = [images.coerce(image, f"images[{i}]") for i, image in enumerate(given)]
        return self.encode(prompt.chat(messages, visuals=prompt.image_placeholders(len(pictures))), pictures)

    def _video(self, messages: Sequence[prompt.Message], frames: np.ndarray, fps: float) -> Row:
        if np.ndim(frames) != 4 or not len(frames) or not fps > 0:
            raise ValueError(f"video: {np.shape(frames)} at {fps} fps, expected frames [T, H, W, 3] and their rate.")
        shown = clips.indices(len(frames), fps, self.processor)
        crops = clips.crops_of(np.stack([images.coerce(frames[i], f"video[{i}]") for i in shown]), self.processor)
        visual = prompt.video_tokens(
            self.tokenizer, self.cfg.tokens, (shown / fps).tolist(), crops.grid[:2], self.processor
        )
        text = prompt.chat(messages, visuals=prompt.VIDEO)
        tokens = prompt.encode_prompt(self.tokenizer, self.cfg.tokens, text, [visual])
        return Row(tokens, crops.pixels, crops.pooling)

    def encode(self, text: str, pictures: Sequence[np.ndarray]) -> Row:
        """Turns a prompt with placeholders and its pictures u8[H, W, 3] into a row."""
        crops = [images.crops_of(picture, self.processor) for picture in pictures]
        visuals = [prompt.image_tokens(self.cfg.tokens, crop.grid, self.processor) for crop in crops]
        tokens = prompt.encode_prompt(self.tokenizer, self.cfg.tokens, text, visuals)
        if not crops:
            side, slots = self.processor.image_size, self.processor.pooling**2
            return Row(tokens, np.zeros((0, side, side, 3), np.uint8), np.zeros((0, slots), np.int32))
        return Row(tokens, *images.join(crops, (self.processor.image_size // self.processor.patch_size) ** 2))


def pictures(observation: Observation, tag: norm_stats.Tag, *, strict_cameras: bool) -> list[np.ndarray]:
    """Returns the observation's pictures as u8[H, W, 3].

    Raises:
      ValueError: none, more than five, more than the tag lists, fewer with `strict_cameras`, or not a picture.
    """
    given, listed = list(observation.images), tag.cameras
    if not given:
        raise ValueError(f"images: none, expected {_cameras(listed)}. Pass the pictures in the order of the cameras.")
    if len(given) > MAX_IMAGES or (listed and len(given) > len(listed)):
        raise ValueError(f"images: {len(given)}, expected {_cameras(listed)}. Leave out the others.")
    if strict_cameras and len(given) < len(listed):
        raise ValueError(
            f"images: {len(given)}, expected {_cameras(listed)}. Pass one picture per camera, or allow fewer with "
            "strict_cameras=False."
        )
    return [images.coerce(image, f"images[{i}]") for i, image in enumerate(given)]


def _cameras(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else f"1 to {MAX_IMAGES}"


def check_state(state: np.ndarray | None, stats: norm_stats.TagStats) -> np.ndarray:
    """Returns the state as f32[D].

    Raises:
      ValueError: absent, of another length, or with entries that are not finite (their names are listed).
    """
    if state is None:
        raise ValueError(f"state: None, expected {stats.width} numbers in the robot's units.")
    values = np.asarray(state)
    if values.dtype.kind not in "uif" or values.shape != (stats.width,):
        raise ValueError(
            f"state: {values.dtype}{list(values.shape)}, expected float32[{stats.width}] from the norm_tag."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"state: not finite in channels {[stats.name(i) for i in bad.tolist()]}. Check the robot's sensors."
        )
    return values.astype(np.float32)


def bucket(length: int) -> int:
    """Returns the padded length of a prompt: steps of 16 up to 256, 32 up to 512, then 64. One program per bucket."""
    step = 16 if length <= 256 else 32 if length <= 512 else 64
    return -(-length // step) * step


def pad(rows: Sequence[Row], pad_id: int, length: int) -> Inputs:
    """Stacks rows: tokens padded on the left to `length`, crops and pooling behind to the longest row."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    valid = np.zeros((len(rows), length), bool)
    crops = np.zeros((len(rows), max(len(r.crops) for r in rows), *rows[0].crops.shape[1:]), np.uint8)
    most = max(len(r.pooling) for r in rows)
    pooling = np.full((len(rows), most, rows[0].pooling.shape[1]), -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, length - len(row.tokens) :] = row.tokens
        valid[i, length - len(row.tokens) :] = True
        crops[i, : len(row.crops)] = row.crops
        pooling[i, : len(row.pooling)] = row.pooling
    return Inputs(tokens, valid, crops, pooling)
