"""Robot frames to training examples: prompt, state tokens, answer, and the action chunk the expert learns."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from molmoact2_jax import batch
from molmoact2_jax.data import augment, images, mixture, norm_stats, normalize, robot_options
from molmoact2_jax.data import cameras as cameras_lib
from molmoact2_jax.data import example as example_lib
from molmoact2_jax.data.example import Encoding, Example, PaddedChunk
from molmoact2_jax.data.robot_options import Options, Robot
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.text import actions as actions_lib
from molmoact2_jax.text import prompt

FROZEN = "<ALL FROZEN FRAMES>"  # the annotator saw nothing move
UNWRITABLE = "actions the codec cannot write"
UNTOLD = "no instruction"
UNTOLD = "no instruction"
RETRIES = 5  # frames drawn in place of a frozen episode's


class Pictures(NamedTuple):
    """Which pictures an example shows, and the seed of their augmentation."""

    episode: int
    frame: int
    cameras: tuple[str, ...]
    seed: tuple[int, ...]


class Targets(NamedTuple):
    """What an example teaches: a chunk for the expert or None, i32[N] an answer for the decoder or empty, a note."""

    chunk: PaddedChunk | None
    answer: np.ndarray
    note: str = ""


class RobotDataset:
    """Every frame of a source is an example. Frames that its quarantine names are skipped, not renumbered."""

    def __init__(self, source: EpisodeSource, robot: Robot, encoding: Encoding, options: Options):
        """Checks that source, tag and options fit together.

        Raises:
          ValueError: widths, horizon, cameras, or missing parts of the checkpoint; each in words.
        """
        self.name, self.parts, self.problems = source.name, source.num_episodes, source.problems
        self._source, self._robot, self._encoding, self._options = source, robot, encoding, options
        robot_options.check(source, robot, encoding, options)
        sets = (robot.tag.cameras, robot.tag.alternative_cameras) if robot.tag.cameras else (source.cameras,)
        self._camera_sets = [cameras_lib.resolve(keys, source) for keys in sets if keys]
        self.digest = _digest(source.digest, norm_stats.digest(robot.tag), robot.mode, options)

    def __len__(self) -> int:
        return len(self._source.valid)

    def example(self, index: int, epoch: int) -> Example:
        """Makes the example of a frame; see `example.Dataset`."""
        if not self._source.valid[index]:
            raise example_lib.Skipped("quarantined")
        rng = mixture.example_rng(self._options.seed, index, len(self), epoch)
        episode, frame, task = self._instruction(rng, index)
        cameras = self._cameras(rng, episode)
        style = _drawn(rng, self._options.styles)
        targets = self._targets(episode, frame, cameras, style)
        state = self._state(episode, frame)
        try:
            text = self._prompt(style, task, state, len(cameras))
        except ValueError as error:  # an instruction that holds a picture's placeholder
            raise self._source.error(episode, frame, str(error)) from error
        conversation = example_lib.answered(text, targets.answer)
        weighting = example_lib.Weighting()
        labelled = example_lib.label(np.zeros(0, np.int32), [conversation], self._encoding.ids.eos, weighting)
        return Example(
            tokens=labelled.tokens,
            positions=labelled.positions,
            segments=labelled.segments,
            targets=labelled.targets,
            weights=labelled.weights,
            style=batch.STYLES.index(style),
            num_crops=len(cameras),
            pictures=Pictures(episode, frame, cameras, (zlib.crc32(self.name.encode()), index, epoch)),
            chunk=targets.chunk,
            note=targets.note or ("" if task.strip() else UNTOLD),
        )

    def pixels(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Decodes and resizes the cameras; see `example.Dataset`."""
        at: Pictures = example.pictures
        decoded = self._source.frames(at.episode, [at.frame], at.cameras)
        pictures = [decoded[camera][0] for camera in at.cameras]
        if self._options.augment != "none":
            rngs = [np.random.default_rng((self._options.seed, *at.seed, i)) for i in range(len(pictures))]
            pictures = [augment.augment(p, rng, self._options.augment) for p, rng in zip(pictures, rngs)]
        crops = [images.crops_of(picture, self._encoding.processor) for picture in pictures]
        return images.join(crops, self._encoding.patches)

    def _instruction(self, rng: np.random.RandomState, index: int) -> tuple[int, int, str]:
        """Returns episode, frame and instruction; a frozen episode gives its place to another frame."""
        for _ in range(1 + RETRIES):
            if self._source.valid[index]:
                episode, frame = self._source.locate(index)
                annotated = self._annotation(rng, episode) if self._options.annotated_task else None
                if annotated is None:
                    return episode, frame, self._source.task(episode, frame)
                if annotated.strip() != FROZEN:
                    return episode, frame, annotated
            index = int(rng.randint(len(self)))
        raise example_lib.Skipped("frozen frames")

    def _annotation(self, rng: np.random.RandomState, episode: int) -> str | None:
        own = self._source.annotation(episode)
        if not self._options.sampled_annotation or (own is not None and own.strip() == FROZEN):
            return own
        return self._source.annotation(int(rng.choice(self._source.same_task(episode)))) or own

    def _cameras(self, rng: np.random.RandomState, episode: int) -> tuple[str, ...]:
        sets = self._camera_sets
        keys = sets[rng.randint(len(sets))] if len(sets) > 1 else sets[0]
        filmed = self._source.cameras_of(episode)
        keys = tuple(key for key in keys if key in filmed)
        if not keys:
            raise self._source.error(
                episode, None, f"none of the cameras {list(sets[0])} filmed it, only {list(filmed)}"
            )
        order = self._options.camera_order
        if order == "episode":
            places = cameras_lib.episode_order(
                self.name, self._options.seed, int(self._source.episode_ids[episode]), keys
            )
        else:
            places = rng.permutation(len(keys)) if order == "all" else np.arange(len(keys))
        return tuple(keys[i] for i in places[: self._options.max_images])

    def _state(self, episode: int, frame: int) -> np.ndarray | None:
        """Returns i32[D], the state's bins, or None for a model that reads no state."""
        if not self._options.state:
            return None
        state = normalize.to_model_joints(self._source.state(episode, frame), self._robot.tag)
        num_bins = self._encoding.ids.num_states
        return normalize.state_bins(normalize.normalize(state, self._robot.tag.state, self._robot.mode), num_bins)

    def _prompt(self, style: str, task: str, state: np.ndarray | None, cameras: int) -> np.ndarray:
        options, tag = self._options, self._robot.tag
        question = prompt.robot_question(
            prompt.normalize_task(task), tag.setup, tag.control, state, style,
            setup_tokens=options.setup_tokens, control_tokens=options.control_tokens,
        )  # fmt: skip
        text = prompt.robot_prompt(question, style, cameras)
        return prompt.encode_prompt(
            self._encoding.tokenizer, self._encoding.ids, text, [self._picture_tokens] * cameras
        )

    @functools.cached_property
    def _picture_tokens(self) -> np.ndarray:
        processor = self._encoding.processor
        pooled = -(-(processor.image_size // processor.patch_size) // processor.pooling)
        return prompt.image_tokens(self._encoding.ids, (pooled, pooled, 0, 0), processor)

    def _targets(self, episode: int, frame: int, cameras: Sequence[str], style: str) -> Targets:
        answer, note = "", ""
        continuous = self._options.action_format == "continuous"
        if "depth" in style and not continuous:
            answer += prompt.depth_answer(self._depth(episode, frame, cameras))
        if "action" not in style:
            return Targets(None, self._encoded(answer))
        chunk = self._source.chunk(episode, frame, self._horizon)
        joints = normalize.to_model_joints(chunk.actions, self._robot.tag)
        actions = normalize.normalize(joints, self._robot.tag.action, self._robot.mode)
        if not continuous:
            stream, note = self._action_answer(actions)
            answer += stream
        padded = None if self._options.action_format == "discrete" else self._padded(actions, chunk.valid)
        return Targets(padded, self._encoded(answer), note)

    def _action_answer(self, actions: np.ndarray) -> tuple[str, str]:
        """Returns the answer, and a note where the codec lacks a character for one of its levels."""
        codec = self._robot.codec
        assert codec is not None
        [tokens] = codec.encode(actions[None])
        try:
            codec.decode([tokens], *actions.shape)
        except actions_lib.ActionDecodeError:
            if self._options.unwritable == "skip":
                raise example_lib.Skipped(UNWRITABLE) from None
            return prompt.action_answer(tokens), UNWRITABLE
        return prompt.action_answer(tokens), ""

    @property
    def _horizon(self) -> int:
        return self._robot.tag.horizon or self._options.horizon

    def _encoded(self, answer: str) -> np.ndarray:
        if not answer:
            return np.zeros(0, np.int32)
        return prompt.encode_answer(self._encoding.tokenizer, self._encoding.ids, answer)

    def _depth(self, episode: int, frame: int, cameras: Sequence[str]) -> np.ndarray:
        codes = self._source.depth_codes(episode, frame, cameras)
        if codes is None:
            raise self._source.error(episode, frame, f"no depth codes for any of the cameras {list(cameras)}")
        return codes

    def _padded(self, actions: np.ndarray, valid: np.ndarray) -> PaddedChunk:
        horizon, channels = self._options.horizon, self._options.channels
        kept = valid if self._options.episode_end == "mask" else np.ones_like(valid)
        return PaddedChunk(
            actions=np.pad(actions, ((0, horizon - len(actions)), (0, channels - actions.shape[1]))),
            valid=np.pad(kept, (0, horizon - len(kept))),
            channels=np.arange(channels) < actions.shape[1],
        )


def _drawn(rng: np.random.RandomState, rates: Mapping[str, float]) -> str:
    names = list(rates)
    shares = np.array([rates[name] for name in names], np.float64)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
