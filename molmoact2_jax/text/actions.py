"""The action codec ("OpenFAST"): a normalised chunk as a short list of tokens, and back.

Each channel is transformed along time by an orthonormal DCT-II and rounded; the levels, lowest frequency of all
channels first, are written as characters and compressed by a byte-level BPE. Source: FAST (Pertsch et al. 2025).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from molmoact2_jax import config
from molmoact2_jax.text import tokenizer as tokenizer_lib

SETTINGS = "processor_config.json"
_REPLACEMENT = "\ufffd"  # what bytes that are not UTF-8 decode to


class ActionDecodeError(ValueError):
    """A stream of action tokens does not spell a chunk.

    Attributes:
      expected: coefficients of the chunk, steps times channels; 0 where the stream was refused before decoding.
      got: coefficients, or action tokens, that the stream had.
    """

    def __init__(self, message: str, expected: int = 0, got: int = 0):
        super().__init__(message)
        self.expected, self.got = expected, got


@dataclasses.dataclass(frozen=True, eq=False)
class ActionCodec:
    """A fitted codec. Tokens count from 0; the model's vocabulary shifts them.

    Attributes:
      backend: BPE over the characters of the levels.
      scale: levels per unit of a DCT coefficient.
      min_token: the level that character 0 stands for.
      vocab_size: tokens that the fit was allowed.
    """

    backend: tokenizers.Tokenizer
    scale: float
    min_token: int
    vocab_size: int

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> ActionCodec:
        """Reads `tokenizer.json` and `processor_config.json`; settings that are missing take the released defaults.

        Raises:
          FileNotFoundError: there is no tokenizer.
          ValueError: a file cannot be read.
        """
        directory = pathlib.Path(directory)
        backend = tokenizer_lib.read(directory / tokenizer_lib.FILENAME)
        path = directory / SETTINGS
        try:
            settings = json.loads(path.read_text()) if path.is_file() else {}
            values = [settings.get(k, d) for k, d in (("scale", 10), ("min_token", 0), ("vocab_size", 1024))]
            return cls(backend, float(values[0]), int(values[1]), int(values[2]))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"action codec: cannot read {path}: {error}. Fetch the file again.") from error

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the released files, so that `load` and the released processor read the same codec back."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(directory / tokenizer_lib.FILENAME), pretty=True)
        scale = int(self.scale) if self.scale == int(self.scale) else self.scale
        settings = dict(
            action_dim=None, min_token=self.min_token, processor_class="UniversalActionProcessor", scale=scale,
            time_horizon=None, vocab_size=self.vocab_size,
        )  # fmt: skip
        head = dict(
            backend="tokenizers", clean_up_tokenization_spaces=False, model_max_length=int(1e30),
            processor_class="UniversalActionProcessor", tokenizer_class="TokenizersBackend",
        )  # fmt: skip
        for name, content in ((SETTINGS, settings), ("tokenizer_config.json", head)):
            (directory / name).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def fit(cls, chunks: Iterable[np.ndarray], *, scale: float = 10, vocab_size: int = 2048) -> ActionCodec:
        """Fits the codec to normalised chunks.

        Args:
          chunks: f32[T, D] each; horizon and channels may vary.
          scale: levels per unit.
          vocab_size: most tokens to learn, at least the number of levels.

        Raises:
          ValueError: there is no chunk, one is not finite, or the levels exceed the vocabulary.
        """
        levels = [_levels(_finite(chunk, 2), scale).ravel() for chunk in chunks]
        if not levels:
            raise ValueError("fit: no chunks, expected at least one. Check the selection of episodes.")
        low, high = min(int(x.min()) for x in levels), max(int(x.max()) for x in levels)
        if high - low > vocab_size:
            raise ValueError(f"fit: levels {low} to {high}, expected at most {vocab_size}. Lower the scale.")
        backend = _empty_backend()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=[],
            initial_alphabet=[chr(i) for i in range(high - low + 1)], max_token_length=10000,
        )  # fmt: skip
        backend.train_from_iterator((_text(x - low) for x in levels), trainer=trainer)
        return cls(backend, float(scale), low, vocab_size)

    @property
    def size(self) -> int:
        """Tokens learned; at most `vocab_size`."""
        return self.backend.get_vocab_size()

    def encode(self, chunks: np.ndarray) -> list[list[int]]:
        """Returns the tokens of each chunk of f32[B, T, D], normalised.

        Levels below the fitted range are raised to it and levels without a character are left out, as released;
        `losses` counts them.

        Raises:
          ValueError: another rank, NaN or infinity.
        """
        symbols = np.maximum(_levels(_finite(chunks, 3), self.scale) - self.min_token, 0)
        encodings = self.backend.encode_batch_fast([_text(s.ravel()) for s in symbols], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def losses(self, chunks: np.ndarray) -> np.ndarray:
        """Returns i64[B], how many coefficients of each chunk `encode` cannot write; any of them spoils its chunk."""
        symbols = _levels(_finite(chunks, 3), self.scale) - self.min_token
        distinct, inverse = np.unique(symbols, return_inverse=True)
        lost = np.asarray([u < 0 or not self._has(int(u)) for u in distinct])
        return lost[inverse.reshape(len(symbols), -1)].sum(axis=1)

    def _has(self, symbol: int) -> bool:
        pieces = self.backend.pre_tokenizer.pre_tokenize_str(chr(symbol))
        return all(self.backend.token_to_id(byte) is not None for piece, _ in pieces for byte in piece)

    def decode(
        self, tokens: Sequence[Sequence[int]], horizon: int, channels: int, *, strict: bool = True
    ) -> np.ndarray:
        """Returns f32[B, horizon, channels], normalised.

        Args:
          tokens: of each chunk.
          horizon: steps of the tag.
          channels: of the robot, not padded.
          strict: False gives the reference's chunk of zeros for a malformed stream.

        Raises:
          ActionDecodeError: a stream spells more or fewer coefficients than the chunk has, or none that are numbers.
        """
        coefficients = np.zeros((len(tokens), horizon, channels))
        for row, stream in enumerate(tokens):
            text = self.backend.decode([int(t) for t in stream], skip_special_tokens=False)
            if strict:
                self._check(stream, text, row, horizon * channels)
            if len(text) == horizon * channels:
                symbols = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
                coefficients[row] = (symbols + self.min_token).reshape(horizon, channels) / self.scale
        return (_dct(horizon).T @ coefficients).astype(np.float32)

    def _check(self, stream: Sequence[int], text: str, row: int, expected: int) -> None:
        unknown = sum(not 0 <= int(t) < self.size for t in stream)
        reason = f"{unknown} tokens outside the codec's {self.size}" if unknown else ""
        if _REPLACEMENT in text:
            reason = "bytes that spell no level"
        if len(text) != expected:
            reason = f"{len(text)} coefficients, expected {expected}"
        if reason:
            raise ActionDecodeError(
                f"actions[{row}]: {len(stream)} tokens decode to {reason}. Skip the chunk and ask the model again; "
                "strict=False takes the reference's zeros.",
                expected,
                len(text),
            )


def bins_from_ids(ids: Sequence[int] | np.ndarray, tokens: config.TokenIds, *, strict: bool = True) -> np.ndarray:
    """Returns i32[N], the codec's tokens in generated ids: those between the first action start and the next end.

    Args:
      ids: generated ids. Without a start they count from the beginning, without an end to the last.
      tokens: ids of the checkpoint.
      strict: False leaves out ids of other tokens, as released.

    Raises:
      ActionDecodeError: there is no action token, or (strict) something else stands between them.
      ValueError: the checkpoint has no action tokens.
    """
    if tokens.action_first is None:
        raise ValueError("actions: the checkpoint has no action tokens. Use the continuous mode.")
    span = np.asarray(ids, np.int64).ravel()
    starts = np.flatnonzero(span == tokens.action_start)
    span = span[starts[0] + 1 :] if len(starts) else span
    ends = np.flatnonzero(span == tokens.action_end)
    span = span[: ends[0]] if len(ends) else span
    bins = span - tokens.action_first
    valid = (bins >= 0) & (bins < tokens.num_actions)
    if not valid.any() or (strict and not valid.all()):
        raise ActionDecodeError(
            f"actions: {valid.sum()} action tokens among {len(span)} ids, expected only action tokens. "
            "Skip the chunk and ask the model again.",
            got=int(valid.sum()),
        )
    return bins[valid].astype(np.int32)


def _levels(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Returns i64[..., T, D], rounded DCT coefficients, halves to even."""
    return np.rint(_dct(chunks.shape[-2]) @ chunks * scale).astype(np.int64)


def _finite(chunks: np.ndarray, rank: int) -> np.ndarray:
    chunks = np.asarray(chunks, np.float64)
    if chunks.ndim != rank or not chunks.size:
        raise ValueError(
            f"actions: shape {chunks.shape}, expected {'[B, T, D]' if rank == 3 else '[T, D]'}, not empty."
        )
    if not np.isfinite(chunks).all():
        raise ValueError("actions: NaN or infinite values, expected normalised actions. Check the dataset.")
    return chunks


@functools.lru_cache(maxsize=64)
def _dct(size: int) -> np.ndarray:
    """Returns f64[K, T], the orthonormal DCT-II; its transpose undoes it."""
    angles = math.pi * (np.arange(size) + 0.5) * np.arange(size)[:, None] / size
    matrix = np.cos(angles) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix


def _text(symbols: np.ndarray) -> str:
    return "".join(map(chr, symbols.tolist()))


def _empty_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend
