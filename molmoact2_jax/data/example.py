"""One training item before its pictures are decoded: token ids, loss weights, attention segments, action chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from molmoact2_jax import batch, config
from molmoact2_jax.data import pack
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.text import tokenizer as tokenizer_lib


class Skipped(ValueError):
    """An example that is sound but not used: over a limit, or asked to be left out. Planners count it by `reason`."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How text and pictures become tokens: parts of the checkpoint that is trained."""

    tokenizer: tokenizer_lib.Tokenizer
    ids: config.TokenIds
    processor: config.ProcessorConfig

    @property
    def patches(self) -> int:
        """Patches of one crop."""
        return (self.processor.image_size // self.processor.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class PaddedChunk:
    """A normalised action chunk in the size that the expert reads.

    Attributes:
      actions: f32[A, N], zero beyond the tag's horizon and the robot's channels.
      valid: bool[A], true for steps with a target.
      channels: bool[N], true for channels the robot has.
    """

    actions: np.ndarray
    valid: np.ndarray
    channels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Example:
    """A training item of T input tokens.

    Attributes:
      tokens, positions, segments, targets: i32[T], as in `batch.Batch`, for the first example of a row.
      weights: f32[T], loss weight of each target.
      style: index into `batch.STYLES`.
      num_crops: pictures after cutting.
      pictures: what the dataset needs to decode them.
      chunk: None where no actions are predicted.
      note: something remarkable that planners count, "" for nothing.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    style: int
    num_crops: int
    pictures: Any
    chunk: PaddedChunk | None = None
    note: str = ""

    def meta(self, dataset: int, index: int, epoch: int) -> pack.Meta:
        """Returns what the planner needs to know."""
        return pack.Meta(dataset, index, epoch, len(self.tokens), self.num_crops, int(self.chunk is not None))


class Dataset(Protocol):
    """Examples by number. An example is a function of (index, epoch) alone; instances pickle without open files.

    Attributes:
      name: what reports call it, unique in a mixture.
      digest: hex identity of its content and of the options that shape its examples.
      parts: what it was recorded in (episodes, records), those included that could not be read when it was opened.
      problems: the latter, by name; no example is of them.
    """

    name: str
    digest: str
    parts: int
    problems: tuple[SampleError, ...]

    def __len__(self) -> int:
        """Returns the number of examples in an epoch."""

    def example(self, index: int, epoch: int) -> Example:
        """Makes an example without touching pixels.

        Raises:
          source.SampleError: the data is damaged.
          Skipped: the data is sound but not for training.
        """

    def pixels(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the pictures of an example.

        Returns:
          u8[num_crops, S, S, 3] and i32[F, W], patch windows of its F image tokens counted through its crops.

        Raises:
          source.SampleError: a picture is damaged.
        """


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Loss weights of a dataset ("root_subsegments_root_tokens", `training.md` 2.1).

    Attributes:
      weight: factor on every supervised token.
      root_length: a conversation of n supervised tokens weighs each of them 2 / sqrt(n).
      root_conversations: an example of c conversations divides by sqrt(c).
    """

    weight: float = 1.0
    root_length: bool = True
    root_conversations: bool = True


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Tokens that follow the pictures of an example.

    Attributes:
      tokens: i32[T], without a last EOS.
      supervised: bool[T], true where the loss is on the token that follows; after the last one that is EOS.
    """

    tokens: np.ndarray
    supervised: np.ndarray


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The token arrays of an `Example`."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def answered(prompt: np.ndarray, answer: np.ndarray) -> Conversation:
    """Returns a conversation of one answer; `answer` ends with EOS, or is empty where there is nothing to learn."""
    tokens = np.concatenate([prompt, answer[:-1]]).astype(np.int32)
    supervised = np.zeros(len(tokens), bool)
    supervised[len(tokens) - len(answer) :] = len(answer) > 0
    return Conversation(tokens, supervised)


def label(prefix: np.ndarray, conversations: Sequence[Conversation], eos: int, weighting: Weighting) -> Labelled:
    """Lays conversations about the same pictures behind their shared prefix.

    Each conversation sees the prefix and itself, and counts positions from the end of the prefix.

    Args:
      prefix: i32[P], BOS and image tokens; may be empty with a single conversation.
      conversations: one or more.
      eos: id that ends an answer.
      weighting: loss weights.

    Raises:
      ValueError: more conversations than segment numbers.
    """
    if not 0 < len(conversations) <= batch.SHARED_PREFIX:
        raise ValueError(f"label: {len(conversations)} conversations, expected 1 to {batch.SHARED_PREFIX}.")
    parts = [prefix, *(c.tokens for c in conversations)]
    shared = batch.SHARED_PREFIX if len(conversations) > 1 else 0
    segments = [np.full(len(prefix), shared), *(np.full(len(c.tokens), j) for j, c in enumerate(conversations))]
    positions = [np.arange(len(prefix)), *(len(prefix) + np.arange(len(c.tokens)) for c in conversations)]
    targets = [_shifted(prefix, conversations[0].tokens[0]), *(_shifted(c.tokens, eos) for c in conversations)]
    weights = [np.zeros(len(prefix)), *(_weights(c.supervised, len(conversations), weighting) for c in conversations)]
    return Labelled(
        tokens=np.concatenate(parts).astype(np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        segments=np.concatenate(segments).astype(np.int32),
        targets=np.concatenate(targets).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
    )


def _shifted(tokens: np.ndarray, following: int) -> np.ndarray:
    return np.append(tokens[1:], following)[: len(tokens)]


def _weights(supervised: np.ndarray, conversations: int, weighting: Weighting) -> np.ndarray:
    weights = supervised * weighting.weight
    if weighting.root_length:
        weights = weights * 2 / np.sqrt(max(1, supervised.sum()))
    return weights / np.sqrt(conversations) if weighting.root_conversations else weights
