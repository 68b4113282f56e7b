"""The released `tokenizer.json`, read by the `tokenizers` library alone."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import tokenizers

from molmoact2_jax import config

FILENAME = "tokenizer.json"

# Where the released configuration and the vocabulary name the same token.
NAMES = {
    "image_start": "<im_start>",
    "image_end": "<im_end>",
    "image_patch": "<im_patch>",
    "image_col": "<im_col>",
    "low_res_image_start": "<low_res_im_start>",
    "image_low": "<im_low>",
    "frame_start": "<frame_start>",
    "frame_end": "<frame_end>",
    "action_output": "<action_output>",
    "action_start": "<action_start>",
    "action_end": "<action_end>",
    "depth_output": "<depth_output>",
    "depth_start": "<depth_start>",
    "depth_end": "<depth_end>",
    "state_start": "<state_start>",
    "state_end": "<state_end>",
}
FAMILIES = {
    "action": ("action_first", "num_actions"),
    "depth": ("depth_first", "num_depths"),
    "state": ("state_first", "num_states"),
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Adds no special tokens of its own; those written in the text become single ids."""

    backend: tokenizers.Tokenizer

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> Tokenizer:
        """Reads `tokenizer.json` of a checkpoint directory.

        Raises:
          FileNotFoundError: the directory has no such file.
          ValueError: the file is not a tokenizer.
        """
        path = pathlib.Path(directory) / FILENAME
        return cls(read(path))

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Joins ids to text; ids without an entry are left out, bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int:
        """Returns the id of one token.

        Raises:
          ValueError: the vocabulary lacks it.
        """
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"tokenizer: no token {token!r} among {self.size}. Use the tokenizer.json of the same checkpoint."
            )
        return found

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)


def read(path: pathlib.Path) -> tokenizers.Tokenizer:
    """Reads one tokenizer file; the errors of `Tokenizer.load`."""
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: no file {path}, expected a checkpoint directory with {path.name}.")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(f"tokenizer: cannot read {path}: {error}. Fetch the file again.") from error


def check(tokenizer: Tokenizer, ids: config.TokenIds) -> None:
    """Compares the ids of `config.json` with the vocabulary; releases differ in them.

    Raises:
      ValueError: lists every token that the two place differently.
    """
    wrong = [
        f"{token}: config {expected}, vocabulary {found}"
        for token, expected in _named(ids)
        if (found := tokenizer.backend.token_to_id(token)) != expected
    ]
    if wrong:
        raise ValueError(
            f"tokenizer: ids differ from config.json: {'; '.join(wrong)}. Take both files from the same checkpoint."
        )


def _named(ids: config.TokenIds) -> Iterator[tuple[str, int]]:
    for field, token in NAMES.items():
        if (value := getattr(ids, field)) is not None:
            yield token, value
    for family, (first, count) in FAMILIES.items():
        start, number = getattr(ids, first), getattr(ids, count)
        if start is not None and number:  # ends suffice: vocabularies number families without gaps
            yield f"<{family}_0>", start
            yield f"<{family}_{number - 1}>", start + number - 1
