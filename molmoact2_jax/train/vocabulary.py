"""Which rows of a vocabulary table a checkpoint already has, when tokens were added or moved. Source: `io.md` 1.1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from molmoact2_jax.config import ModelConfig, TokenIds

SETUP = "setup and control"  # four markers in front of the first other family; config.json does not list their ids
IMAGES = ("image_start", "image_end", "image_patch", "image_col", "low_res_image_start", "image_low", "frame_start",
          "frame_end")  # fmt: skip


class Rows(NamedTuple):
    """Where the entries of an axis come from.

    source: i32[N], entry of the checkpoint, -1 for one that is new; base: that many entries of the checkpoint, from the
    first, are what new ones are drawn around; new: what the new ones are, in words.
    """

    source: np.ndarray
    base: int
    new: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every entry stays where it is; the checkpoint must have as many then."""
        return bool((self.source == np.arange(len(self.source))).all())


def families(ids: TokenIds) -> dict[str, tuple[int, ...]]:
    """Returns the ids of each family of added tokens that a vocabulary has."""
    found: dict[str, tuple[int, ...]] = {}
    for name, count in (("state", ids.num_states), ("action", ids.num_actions), ("depth", ids.num_depths)):
        start, end, first = (getattr(ids, f"{name}_{part}") for part in ("start", "end", "first"))
        output = getattr(ids, f"{name}_output", None)
        if first is not None:
            found[name] = (*((output,) if output is not None else ()), start, end, *range(first, first + count))
    if found:
        first = min(min(family) for family in found.values())
        found = {SETUP: tuple(range(first - 4, first)), **found}
    return found


def added(cfg: ModelConfig) -> tuple[int, int]:
    """Returns the ids [first, last) of added tokens; none, at the end of the table, where there are none."""
    ids = [i for family in families(cfg.tokens).values() for i in family]
    return (min(ids), max(ids) + 1) if ids else (cfg.llm.vocab_size,) * 2


def table_rows(before: ModelConfig, now: ModelConfig) -> Rows:
    """Maps rows of the vocabulary table: base tokens, families of added tokens and padding, each to its own place.

    Rows of a checkpoint without added tokens that lie where the new ones go are unused and given up, as released.

    Raises:
      ValueError: the checkpoint has other base tokens, or a family that the model lacks or has in another size.
    """
    old, new = families(before.tokens), families(now.tokens)
    (first, end), (first_old, end_old) = added(now), added(before)
    moved = bool(old) and first != first_old
    lost = [name for name, ids in old.items() if len(new.get(name, ())) != len(ids)]
    if moved or lost or first > before.llm.vocab_size:
        raise ValueError(
            f"init_from: {first_old} base tokens and families {[*old]} in {before.llm.vocab_size} rows, expected "
            f"{first} base tokens and none but {[*new]}. Take the sizes and side files that fit the checkpoint."
        )
    source = np.full(now.llm.vocab_size, -1, np.int32)
    source[:first] = np.arange(first)
    for name in old:
        source[list(new[name])] = old[name]
    padding = min(now.llm.vocab_size - end, before.llm.vocab_size - end_old)
    source[end : end + padding] = np.arange(end_old, end_old + padding)
    words = [f"{len(ids)} {name} tokens" for name, ids in new.items() if name not in old]
    rest = now.llm.vocab_size - end - padding
    return Rows(source, first, (*words, *([f"{rest} rows of padding"] if rest else [])))


def image_rows(before: ModelConfig, now: ModelConfig) -> Rows:
    """Maps rows of the table behind the vocabulary, which holds the image tokens."""
    source = np.arange(now.llm.extra_vocab_size, dtype=np.int32)
    for name in IMAGES:
        old, new = getattr(before.tokens, name), getattr(now.tokens, name)
        if old is not None and new is not None:
            source[new - now.llm.vocab_size] = old - before.llm.vocab_size
    return Rows(source, before.llm.extra_vocab_size)


def action_channels(before: ModelConfig, now: ModelConfig) -> Rows:
    """Maps action channels: those of the checkpoint come first."""
    old, new = before.action_dim, now.action_dim
    source = np.where(np.arange(new) < old, np.arange(new), -1).astype(np.int32)
    return Rows(source, old, (f"{new - old} action channels",) if new > old else ())
