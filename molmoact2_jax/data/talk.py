"""Conversations of a record to tokens: chat turns, style prefixes, printed points, tracks and boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.data.example import Conversation, Encoding
from molmoact2_jax.text import pointing, prompt, styles

Sizes = Callable[[], Sequence[pointing.Size]]  # widths and heights in pixels, looked up only where they matter


def conversation(
    messages: Sequence[Mapping[str, Any]], style: str, encoding: Encoding, sizes: Sizes, *, video: bool = False
) -> Conversation:
    """Writes one conversation; every answer with the EOS after it is supervised.

    A later question closes the answer before it once more, as in training of the release (`io.md` 2.4).

    Args:
      messages: as in `vlm`, alternating, the first from the user and the last from the assistant.
      style: of questions that name none.
      encoding: of the checkpoint.
      sizes: of the pictures or of the video.
      video: whether places are seconds.

    Raises:
      ValueError: other roles, marks that cannot be printed, or text that spells image tokens.
    """
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"messages: roles {roles}, expected user, assistant, user, assistant, ...")
    tokens: list[int] = []
    learnt: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] == "user":
            prefix = styles.prefix(message.get("style") or style)
            part = encoding.tokenizer.encode(prompt.user_turn(prefix + message["content"], first=i == 0))
        else:
            text = printed(message["marks"], sizes, video=video) if message.get("marks") else message["content"]
            part = [*encoding.tokenizer.encode(text), encoding.ids.eos]
        tokens += part
        learnt += [message["role"] == "assistant"] * len(part)
    if np.isin(tokens, encoding.ids.image_family).any():
        raise ValueError("messages: the text spells image tokens")
    return Conversation(np.asarray(tokens[:-1], np.int32), np.asarray(learnt[1:], bool))


def printed(marks: Mapping[str, Any], sizes: Sizes, *, video: bool = False) -> str:
    """Returns the answer that marks points, tracks or boxes, as the model writes it.

    Raises:
      ValueError: a mark outside the pictures, or a size that is missing.
    """
    label, alt = marks.get("label") or "", marks.get("alt") or ""
    if not sizes():
        raise ValueError("marks: no size of the pictures. Write `sizes` into the record.")
    if marks.get("boxes") is not None:
        return pointing.boxes(label, np.asarray(marks["boxes"], np.float64).reshape(-1, 4), sizes()[0])
    if marks.get("tracks") is not None:
        found = pointing.by_appearance(_marks(marks["tracks"]), sizes()[0])
        return pointing.tracks(label, found, sizes()[0], alt=alt)
    points = _marks(marks["points"])
    if video:
        tag = pointing.video_points(label, points, sizes()[0], alt=alt)
    else:
        tag = pointing.points(label, points, sizes(), alt=alt)
    return pointing.answer(marks.get("mode") or "point", tag, len(points))


def _marks(rows: Sequence[Sequence[float]]) -> list[pointing.Mark]:
    return [pointing.Mark(row[0], row[1], row[2], int(row[3]) if len(row) > 3 else 0) for row in rows]
