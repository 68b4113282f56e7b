"""The released prompts: robot questions, chat turns, answers, and their ids with pictures in place.

A prompt is one string in Qwen's chat markup without a system turn. Pictures stand before the first turn as
placeholders, which become image tokens when the string is encoded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from molmoact2_jax import config
from molmoact2_jax.text import styles
from molmoact2_jax.text import tokenizer as tokenizer_lib

IMAGE = "<|image|>"
VIDEO = "<|video|>"

TRIGGERS = {
    "robot_action": "<action_output>",
    "robot_depth": "<depth_output>",
    "robot_depth_action": "<depth_output><action_output>",
}
QUESTIONS = {
    "robot_action": "what action should the robot take to complete the task?",
    "robot_depth": "what is the depth map of the main image?",
    "robot_depth_action": "first predict the depth map of the main image and then predict the action the robot should "
    "take to complete the task?",
}

_PREFIXES = (
    re.compile(r"^(?:task|instruction|language[_ ]instruction|goal)\s*[:\-]\s*", re.IGNORECASE),
    re.compile(r"^(?:the\s+task\s+is\s+to|your\s+task\s+is\s+to)\s+", re.IGNORECASE),
)
_WRAPPERS = "\"'`“”‘’[](){}"
_CLOSERS = "\"'”’)]}"
_STOPS = ".,!?;:,…"


def normalize_task(text: str) -> str:
    """Brings an instruction into the form of the training data: lower case, no prefix, wrapping or end stop.

    Sentences are joined by "; ", which also splits decimals ("3.5" becomes "3; 5") as released.

    Raises:
      ValueError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise ValueError(f"task: {type(text).__name__}, expected a string. Pass the instruction in words.")
    text, before = " ".join(text.split()), None
    while text != before:
        before, text = text, _strip_once(text)
    chunks = [chunk.strip() for chunk in re.split(r"[.!?]+", text) if chunk.strip()]
    return ("; ".join(chunks) if len(chunks) > 1 else text).lower()


def _strip_once(text: str) -> str:
    text = text.strip().strip(_WRAPPERS).strip()
    for prefix in _PREFIXES:
        text = prefix.sub("", text, count=1)
    text = text.rstrip(_STOPS).rstrip().rstrip(_CLOSERS).rstrip()
    return text.rstrip(_STOPS).rstrip()


def state_string(bins: Sequence[int] | np.ndarray) -> str:
    """Writes state bins, one token per channel, between their markers."""
    return f"<state_start>{_family('state', bins)}<state_end>"


def action_answer(bins: Sequence[int] | np.ndarray) -> str:
    """Writes the codec's tokens of a chunk as the model generates them."""
    return f"<action_start>{_family('action', bins)}<action_end>"


def depth_answer(codes: Sequence[int] | np.ndarray) -> str:
    """Writes depth codes in raster order as the model generates them."""
    return f"<depth_start>{_family('depth', codes)}<depth_end>"


def _family(name: str, numbers: Sequence[int] | np.ndarray) -> str:
    return "".join(f"<{name}_{int(i)}>" for i in numbers)


def robot_question(
    task: str,
    setup: str,
    control: str,
    state_bins: Sequence[int] | np.ndarray | None,
    style: str,
    *,
    setup_tokens: bool = True,
    control_tokens: bool = True,
) -> str:
    """Writes the question to a robot.

    Args:
      task: instruction, already normalised (`normalize_task`) if the checkpoint wants that.
      setup: the tag's robot in words.
      control: the tag's kind of action in words.
      state_bins: i32[D], or None where the model reads no state: the sentence is left out.
      style: a key of `QUESTIONS`.
      setup_tokens: puts the setup between its tokens, unless it is empty or marked already.
      control_tokens: likewise for the control mode.
    """
    if style not in QUESTIONS:
        raise ValueError(f"style: {style!r}, expected one of {sorted(QUESTIONS)}.")
    sentences = [f"The task is to {task}.", f"The setup is {_marked(setup, 'setup', setup_tokens)}."]
    if state_bins is not None:
        sentences.append(f"The current state of the robot is {state_string(state_bins)}.")
    sentences.append(f"The expected control mode is {_marked(control, 'control', control_tokens)}.")
    sentences.append(f"Given these, {QUESTIONS[style]}")
    return " ".join(sentences)


def _marked(text: str, name: str, marked: bool) -> str:
    start, end = f"<{name}_start>", f"<{name}_end>"
    if not marked or not text or (text.startswith(start) and text.endswith(end)):
        return text
    return f"{start}{text}{end}"


def robot_prompt(question: str, style: str, num_images: int) -> str:
    """Returns pictures, question and the trigger token after which the answer follows."""
    return image_placeholders(num_images) + user_turn(question) + TRIGGERS[style]


def image_placeholders(count: int) -> str:
    """Returns nothing, one placeholder, or numbered ones."""
    if count < 2:
        return IMAGE * count
    return "".join(f"Image {i + 1}{IMAGE}" for i in range(count))


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation: role "user" or "assistant", or first of all "subtitle", the words of a video.

    `style` prefixes a user's text (`styles.prefix`).
    """

    role: str
    text: str
    style: str = ""


def chat(messages: Sequence[Message], *, visuals: str = "") -> str:
    """Writes a conversation that ends with a user's turn, ready for the model's answer.

    Args:
      messages: turns, alternating, the first and the last from the user; a subtitle may stand before them.
      visuals: what `image_placeholders` returned, or `VIDEO`.

    Raises:
      ValueError: the roles do not alternate so.
    """
    if messages and messages[0].role == "subtitle":
        visuals, messages = visuals + messages[0].text, messages[1:]
    roles = [m.role for m in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(f"messages: roles {roles}, expected user, assistant, ..., user. Put each turn in its place.")
    text = visuals
    for i, message in enumerate(messages):
        if message.role == "assistant":
            text += message.text
        else:
            text += user_turn(styles.prefix(message.style) + message.text, first=i == 0)
    return text


def user_turn(text: str, *, first: bool = True) -> str:
    """Returns a user's turn and the head of the answer; later turns close the answer before them."""
    before = "" if first else "<|im_end|>\n"
    return f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def image_tokens(ids: config.TokenIds, grid: tuple[int, int, int, int], settings: config.ProcessorConfig) -> np.ndarray:
    """Returns i32[N], the tokens of one picture.

    Args:
      ids: the checkpoint's ids.
      grid: pooled rows and columns of the whole picture, then of its tiles (0, 0 where it is a single crop).
      settings: whether rows end in a column token.
    """
    rows, cols, tile_rows, tile_cols = grid
    tiled = tile_rows * tile_cols > 0
    start = ids.low_res_image_start if tiled else ids.image_start
    whole = _framed(ids, start, rows, cols, column=settings.single_crop_col_tokens)
    if not tiled:
        return whole
    tiles = _framed(ids, ids.image_start, tile_rows, tile_cols, column=settings.image_col_tokens)
    return np.concatenate([whole, tiles])


def _framed(ids: config.TokenIds, start: int, rows: int, cols: int, *, column: bool) -> np.ndarray:
    row = [ids.image_patch] * cols + [ids.image_col] * column
    return np.asarray([start, *(row * rows), ids.image_end], np.int32)


def video_tokens(
    tokenizer: tokenizer_lib.Tokenizer,
    ids: config.TokenIds,
    times: Sequence[float],
    grid: tuple[int, int],
    settings: config.ProcessorConfig,
) -> np.ndarray:
    """Returns i32[N], the tokens of a video: before each frame its time.

    Args:
      tokenizer: writes the times.
      ids: the checkpoint's ids.
      times: seconds from the start of each frame shown.
      grid: pooled rows and columns of a frame.
      settings: whether frames have markers of their own and rows end in a column token.

    Raises:
      ValueError: frames need markers that the checkpoint lacks.
    """
    start, end = (ids.frame_start, ids.frame_end) if settings.frame_tokens else (ids.image_start, ids.image_end)
    if start is None or end is None:
        raise ValueError("video: the vocabulary has no frame markers, required by the processor. Check config.json.")
    row = [ids.image_patch] * grid[1] + [ids.image_col] * settings.video_col_tokens
    parts: list[int] = []
    for i, time in enumerate(times):
        parts += [*tokenizer.encode(f"{' ' if i else ''}{time:.1f} "), start, *(row * grid[0]), end]
    return np.asarray(parts, np.int32)


def encode_prompt(
    tokenizer: tokenizer_lib.Tokenizer, ids: config.TokenIds, text: str, visuals: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Returns i32[N], a prompt's ids: BOS, then the text with its placeholders replaced from left to right.

    Args:
      tokenizer: of the checkpoint.
      ids: of the checkpoint.
      text: `robot_prompt` or `chat`.
      visuals: `image_tokens` of each picture, or `video_tokens` of the one video.

    Raises:
      ValueError: the text has more or fewer placeholders than there are visuals.
    """
    pieces = re.split(f"{re.escape(IMAGE)}|{re.escape(VIDEO)}", text)
    if len(pieces) != len(visuals) + 1:
        raise ValueError(
            f"prompt: {len(pieces) - 1} placeholders for {len(visuals)} pictures or videos, expected as many. "
            f"Remove {IMAGE} and {VIDEO} from the task or question."
        )
    encoded: list[int] = tokenizer.encode(pieces[0])
    for visual, piece in zip(visuals, pieces[1:]):
        encoded += [*visual.tolist(), *tokenizer.encode(piece)]
    head = [] if encoded[:1] == [ids.bos] else [ids.bos]
    return np.asarray(head + encoded, np.int32)


def encode_answer(tokenizer: tokenizer_lib.Tokenizer, ids: config.TokenIds, text: str) -> np.ndarray:
    """Returns i32[N], an answer's ids and EOS, the part of an example that is supervised."""
    return np.asarray([*tokenizer.encode(text), ids.eos], np.int32)


def image_mask(tokens: np.ndarray, ids: config.TokenIds) -> np.ndarray:
    """Returns bool, true where a token belongs to a picture (`token_type_ids` of the release)."""
    return np.isin(tokens, ids.image_family)
